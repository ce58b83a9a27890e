"""Requests to the Hub: the token stays with the endpoint, waiting is bounded, answers have a largest size.

Nothing else in mlxm.catalog imports httpx.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Self
from urllib.parse import urljoin, urlsplit

import httpx
import msgspec

from mlxm import __version__
from mlxm.catalog import hub_errors
from mlxm.errors import ConfigInvalid, MlxmError

DEFAULT_ENDPOINT = "https://huggingface.co"
MAX_BODY_BYTES = 64 * 1024 * 1024
_MAX_REDIRECTS = 5
_MAX_TRIES = 4
_RETRIED = frozenset({408, 429, 500, 502, 503, 504})
_TOO_MANY = 429
_FIRST_WAIT_S = 0.5
_RESET = re.compile(r"\bt=(\d+)")

Query = Sequence[tuple[str, str]]


class HubOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How the Hub is reached; nothing waits longer than `max_wait_s` because the Hub asks for it."""

    endpoint: str = DEFAULT_ENDPOINT
    token: str | None = None
    timeout_s: float = 20.0
    offline: bool = False
    max_wait_s: float = 60.0

    @classmethod
    def from_environ(cls, environ: Mapping[str, str], *, token: str | None = None, offline: bool = False) -> Self:
        """What Hugging Face's own variables say: HF_ENDPOINT and HF_HUB_OFFLINE; `find_token` knows the token."""
        said = environ.get("HF_ENDPOINT", "").rstrip("/")
        is_off = any(
            environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"}
            for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
        )
        return cls(endpoint=said or DEFAULT_ENDPOINT, token=token, offline=offline or is_off)


def find_token() -> str | None:
    """The token that `hf auth login` or HF_TOKEN left for this user. Blocks: one that has expired is renewed."""
    from huggingface_hub import constants, get_token  # noqa: PLC0415  (only whoever talks to the Hub pays for it)

    try:
        return None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    except (OSError, ValueError) as error:
        raise ConfigInvalid(
            f"The token in {constants.HF_TOKEN_PATH} cannot be read.",
            hint="Make it readable for this user, or remove it and run `hf auth login` again.",
        ) from error


class HubAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What came back, whatever its status; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    next_query: Query | None = None
    """The query of the next page of a listing."""

    @property
    def is_success(self) -> bool:
        """Whether the body is what was asked for."""
        return httpx.codes.is_success(self.status)

    @property
    def error_code(self) -> str | None:
        """The Hub's own word for a failure."""
        return self.headers.get("x-error-code")


class HubHttp:
    """One client for one endpoint; close it."""

    def __init__(self, options: HubOptions) -> None:
        self.options = options
        self._origin = _endpoint_origin(options.endpoint)
        self._client = httpx.AsyncClient(
            timeout=options.timeout_s, follow_redirects=False, headers={"User-Agent": f"mlxm/{__version__}"}
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def get(self, path: str, query: Query = (), *, max_bytes: int = MAX_BODY_BYTES) -> HubAnswer:
        """Ask for `path` below the endpoint; waits as the Hub asks, a bounded number of times.

        Raises Offline or Unavailable when there is no answer; answers other than success are the caller's.
        """
        if self.options.offline:
            raise hub_errors.offline_by_choice("Asking the Hub")
        for attempt in range(1, _MAX_TRIES + 1):
            answer = await self._follow(self.options.endpoint + path, query, max_bytes)
            if answer.status not in _RETRIED or attempt == _MAX_TRIES:
                break
            wait_s = _wait_s(answer, attempt)
            if wait_s > self.options.max_wait_s:
                break
            await asyncio.sleep(wait_s)
        if answer.status == _TOO_MANY:
            raise hub_errors.rate_limited(self.options.endpoint, _wait_s(answer, 1))
        if answer.status in _RETRIED:
            raise hub_errors.refused(self.options.endpoint, answer.status)
        return answer

    async def _follow(self, url: str, query: Query, max_bytes: int) -> HubAnswer:
        params: Query | None = query
        for _ in range(_MAX_REDIRECTS + 1):
            answer, location = await self._ask(url, params, max_bytes)
            if location is None:
                return answer
            url, params = urljoin(url, location), None  # a redirect repeats the query where it is wanted
        raise hub_errors.not_understood(self.options.endpoint)

    async def _ask(self, url: str, params: Query | None, max_bytes: int) -> tuple[HubAnswer, str | None]:
        """One request; the place that it is redirected to, if it is."""
        try:
            async with self._client.stream("GET", url, params=_params(params), headers=self._headers(url)) as response:
                location = response.headers.get("location") if response.is_redirect else None
                body = b"" if location is not None else await _read(response, max_bytes)
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise self._failure(error) from error
        return HubAnswer(
            status=response.status_code,
            headers={name.lower(): value for name, value in response.headers.items()},
            body=body,
            next_query=_next_query(response),
        ), location

    def _headers(self, url: str) -> dict[str, str]:
        """The token goes to the endpoint and nowhere else, wherever a redirect leads."""
        if self.options.token is None or _origin(url) != self._origin:
            return {}
        return {"Authorization": f"Bearer {self.options.token}"}

    def _failure(self, error: Exception) -> MlxmError:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return hub_errors.unreachable(self.options.endpoint, _reason(error))
        if isinstance(error, httpx.TransportError) and not isinstance(error, httpx.UnsupportedProtocol):
            return hub_errors.interrupted(self.options.endpoint, _reason(error))
        return hub_errors.not_understood(self.options.endpoint)


async def _read(response: httpx.Response, max_bytes: int) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > max_bytes:
            raise ValueError(max_bytes)
    return bytes(body)


def _reason(error: Exception) -> str:
    words = str(error).strip().rstrip(".")
    return words or type(error).__name__


def _params(query: Query | None) -> Any:
    """None leaves the query of the URL as it is, which an empty one would remove."""
    return list(query) if query else None


def _endpoint_origin(endpoint: str) -> tuple[str, str, int | None]:
    try:
        found = _origin(endpoint)
    except ValueError:
        found = ("", "", None)
    if found[0] not in ("http", "https") or not found[1]:
        raise ConfigInvalid(
            f"{endpoint!r} is no address of a Hub.",
            hint=f"HF_ENDPOINT has to look like {DEFAULT_ENDPOINT}.",
            param="HF_ENDPOINT",
        )
    return found


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    host = "" if parts.hostname is None else parts.hostname
    standard = {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, host, standard if parts.port is None else parts.port


def _next_query(response: httpx.Response) -> Query | None:
    """The next page is asked of the endpoint again, also where a mirror passes on links to the Hub."""
    url = response.links.get("next", {}).get("url")
    return None if url is None else httpx.URL(url).params.multi_items()


def _wait_s(answer: HubAnswer, attempt: int) -> float:
    """What the Hub asks for in seconds, else twice as long each time."""
    asked = answer.headers.get("retry-after", "")
    if re.fullmatch(r"\d+(\.\d+)?", asked):
        return float(asked)
    reset = _RESET.search(answer.headers.get("ratelimit", ""))
    if reset is not None and answer.status == _TOO_MANY:
        return float(reset[1])
    return _FIRST_WAIT_S * math.pow(2, attempt - 1)
