"""Fetches a model and prints its progress; with a fifth argument fills that file once the weights are under way."""

import asyncio
import sys
from contextlib import suppress
from pathlib import Path

import msgspec

from mlxm.catalog.hub import HubApi, HubOptions
from mlxm.downloads import DownloadOptions, Downloads
from mlxm.errors import MlxmError

endpoint, cache, name = sys.argv[1:4]
ballast = Path(sys.argv[4]) if len(sys.argv) > 4 else None


def fill() -> None:
    """Take all room that the disk has."""
    assert ballast is not None
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)


async def main() -> None:
    """Pull."""
    options = DownloadOptions(cache=Path(cache), margin_bytes=0)
    async with HubApi(HubOptions(endpoint=endpoint)) as api, Downloads(api, options) as downloads:
        job = downloads.start(name)
        async for progress in job.events():
            print(msgspec.json.encode(progress).decode(), flush=True)  # noqa: T201
            if ballast is not None and not ballast.exists() and any("safetensors" in file for file in progress.files):
                fill()
                sys.stdin.readline()
        with suppress(MlxmError):
            await job.wait()


asyncio.run(main())
