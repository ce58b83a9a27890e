"""Whom the server lets in: requests that name it by a name it goes by, and no other site's web pages.

A browser sends a page's requests wherever the page says, and any name can be made to lead here. But it tells truly for
which name it asked, and which page did.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import msgspec

from mlxm.errors import Forbidden, InvalidRequest

LOOPBACK_HOSTS: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
_HOST: Final = re.compile(rb"(\[[0-9a-f:.]{2,45}\]|[a-z0-9._-]{1,253})(:[0-9]{1,5})?")
_ALLOWED_METHODS: Final = b"GET, POST, DELETE, OPTIONS"
_ALLOWED_HEADERS: Final = (
    b"anthropic-beta, anthropic-dangerous-direct-browser-access, anthropic-version, "
    b"authorization, content-type, x-api-key, x-request-id"
)
_SHOWN_HEADERS: Final = b"x-request-id, request-id, x-mlxm-ignored, retry-after"
_PREFLIGHT_AGE_S: Final = b"600"

Headers = Iterable[tuple[bytes, bytes]]


class HostRefused(InvalidRequest):
    """The request was meant for another server."""

    code = "host_refused"


class OriginRefused(Forbidden):
    """The request comes from another site's web page."""

    code = "origin_refused"


class Doors(msgspec.Struct, frozen=True, kw_only=True):
    """The names that the server goes by, without a port, and the origins besides its own whose pages may ask it."""

    hosts: frozenset[str] = LOOPBACK_HOSTS
    origins: frozenset[str] = frozenset()

    def check(self, headers: Headers) -> list[tuple[bytes, bytes]]:
        """What the answer to another origin's page needs; raises HostRefused and OriginRefused."""
        hosts = [value.lower() for name, value in headers if name == b"host"]
        origins = [value.lower() for name, value in headers if name == b"origin"]
        if len(hosts) != 1 or not self._is_known(hosts[0]):
            raise HostRefused(
                "This server does not go by the name in the Host header.",
                hint="Ask for it as localhost, or add the name to the setting server.allowed_hosts.",
            )
        for origin in origins:
            if origin not in (b"http://" + hosts[0], b"https://" + hosts[0]):
                return self._foreign(origin)
        return []

    def _is_known(self, host: bytes) -> bool:
        found = _HOST.fullmatch(host)
        return found is not None and found[1].decode() in self.hosts

    def _foreign(self, origin: bytes) -> list[tuple[bytes, bytes]]:
        if origin.decode("latin-1") not in self.origins:
            raise OriginRefused(
                "Web pages of other origins may not ask this server.",
                hint="The setting server.allowed_origins lists those that may.",
            )
        return [
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", _SHOWN_HEADERS),
            (b"vary", b"origin"),
        ]


def preflight_headers() -> list[tuple[bytes, bytes]]:
    """What a browser wants to know before it sends what a page of an allowed origin asks for."""
    return [
        (b"access-control-allow-methods", _ALLOWED_METHODS),
        (b"access-control-allow-headers", _ALLOWED_HEADERS),
        (b"access-control-max-age", _PREFLIGHT_AGE_S),
        (b"content-length", b"0"),
    ]
