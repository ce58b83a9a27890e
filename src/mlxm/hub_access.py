"""The Hub, and the downloads from it, as this user's environment has them: for a server, a command or a program."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

from mlxm.catalog.hub import HubApi, HubOptions, find_token
from mlxm.downloads import DownloadOptions, Downloads


class HubAccess:
    """One client and its downloads; close it. What it waits for is on the event loop that it is used on."""

    def __init__(self, api: HubApi, options: DownloadOptions) -> None:
        self.api = api
        self.downloads = Downloads(api, options)

    @classmethod
    def open(cls) -> Self:
        """As HF_ENDPOINT, HF_TOKEN, HF_HOME and their like say. Blocks: a token that has expired is renewed."""
        from huggingface_hub.constants import HF_HUB_CACHE  # noqa: PLC0415  # read when asked: it may have been set since

        hub = HubOptions.from_environ(os.environ, token=find_token())
        return cls(HubApi(hub), DownloadOptions(cache=Path(HF_HUB_CACHE)))

    async def close(self) -> None:
        """End every download and close every connection."""
        await self.downloads.close()
        await self.api.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
