"""huggingface_hub's HTTP client as mlxm wants it: it keeps the token at home, and its bytes can be counted.

huggingface_hub hands on 10 MiB at a time, too few for a slow line; what arrives is read off the responses instead.
It follows the Hub's redirects, and would show the token to hosts that it knows: here it stays with the endpoint.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any, Self
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import set_client_factory

from mlxm.catalog import hub_errors

_PARTIAL = 206
_TAG = re.compile(r'(W/)?"?[A-Za-z0-9_-][A-Za-z0-9._-]*"?')


class FileMeter:
    """How much of one file has arrived; written by its fetching thread, read by the reporting one."""

    def __init__(self, path: str, size_bytes: int) -> None:
        self.path = path
        self._size_bytes = size_bytes
        self._start = 0
        self._response: httpx2.Response | None = None
        self._counted = 0

    @property
    def done_bytes(self) -> int:
        """Bytes that are here, as far as the network says."""
        response = self._response
        arrived = 0 if response is None else self._start + response.num_bytes_downloaded
        return min(max(arrived, self._counted), self._size_bytes)

    def follow(self, response: httpx2.Response) -> None:
        """From now on this response brings the file, or the rest of it."""
        span = response.headers.get("content-range", "") if response.status_code == _PARTIAL else ""
        first = span.removeprefix("bytes ").partition("-")[0]
        self._start = int(first) if first.isdigit() else 0
        self._response = response

    def count(self, num_bytes: int) -> None:
        """Bytes that did not come by HTTP."""
        self._counted += num_bytes


def progress_class(meter: FileMeter) -> type:
    """What huggingface_hub takes for a progress bar; it counts what Xet brings, HTTP is counted by the response."""

    class XetProgress:
        def __init__(self, *_: Any, **__: Any) -> None:
            self.total: int | None = None

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def update(self, num_bytes: float | None = None) -> None:
            if num_bytes is not None:
                meter.count(int(num_bytes))

        def update_transfer(self, _: float | None = None) -> None:
            """What travels may be less than what is written, which `update` counts."""

        def set_postfix_str(self, *_: object, **__: object) -> None:
            """Nobody sees it."""

        def set_transfer_postfix_str(self, *_: object, **__: object) -> None:
            """Nobody sees it."""

        def close(self) -> None:
            """Nothing is open."""

    return XetProgress


class Transfers:
    """Makes the client that all threads share; each says which file it is fetching."""

    def __init__(self, endpoint: str, commit: str) -> None:
        self._endpoint = endpoint
        self._origin = _origin(endpoint)
        self._commit = commit
        self._current = threading.local()

    def install(self) -> None:
        """Have huggingface_hub use this client in this process."""
        set_client_factory(self._client)

    def fetch_into(self, meter: FileMeter) -> None:
        """What this thread fetches from now on belongs to `meter`."""
        self._current.meter = meter

    def _client(self) -> httpx2.Client:
        hooks: dict[str, list[Callable[..., Any]]] = {
            "request": [self._keep_token],
            "response": [self._check, self._follow],
        }
        return httpx2.Client(event_hooks=hooks, follow_redirects=True, timeout=None)

    def _keep_token(self, request: httpx2.Request) -> None:
        if _origin(str(request.url)) != self._origin:
            request.headers.pop("authorization", None)

    def _check(self, response: httpx2.Response) -> None:
        """huggingface_hub makes paths of what these headers say."""
        tags = [response.headers[name] for name in ("etag", "x-linked-etag") if name in response.headers]
        commit = response.headers.get("x-repo-commit", self._commit)
        if commit != self._commit or not all(_TAG.fullmatch(tag) for tag in tags):
            raise hub_errors.not_understood(self._endpoint)

    def _follow(self, response: httpx2.Response) -> None:
        if response.request.method == "GET" and response.is_success:
            self._current.meter.follow(response)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    standard = {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, parts.hostname, standard if parts.port is None else parts.port
