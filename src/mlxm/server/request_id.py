"""The one id of a request: in headers, body, audit trail and log.

A client may name its own request when the name is harmless to print; any other is replaced.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Container

from litestar.types import Scope

HEADERS = (b"x-request-id", b"request-id")
_STATE_KEY = "mlxm_request_id"
_HARMLESS = re.compile(rb"[A-Za-z0-9_-]{1,64}")


def assign_request_id(scope: Scope, taken: Container[str]) -> str:
    """Give a request its id, which `request_id_of` finds from then on; no two requests under way share one."""
    named = next((value for name, value in scope["headers"] if name == HEADERS[0]), b"")
    request_id = named.decode() if _HARMLESS.fullmatch(named) else ""
    if not request_id or request_id in taken:
        request_id = f"req_{secrets.token_hex(6)}"
    scope.setdefault("state", {})[_STATE_KEY] = request_id
    return request_id


def request_id_of(scope: Scope) -> str:
    """The id that the request was given."""
    request_id: str = scope["state"][_STATE_KEY]
    return request_id
