"""Reading a request's body: JSON only, of bounded size, in bounded time.

Plain JSON alone keeps other web pages out too: a browser asks before it posts that across origins.
"""

from __future__ import annotations

import asyncio
from typing import Any

from litestar import Request
from litestar.types import Receive

from mlxm.errors import InvalidRequest
from mlxm.server.errors import BodyTooLarge, BodyTooSlow, MediaTypeRefused
from mlxm.server.limits import Limits


async def read_json_body(request: Request[Any, Any, Any], limits: Limits) -> bytes:
    """The body's bytes, which are declared to be JSON; nothing is decoded yet."""
    _check_headers(request, limits)
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            return await _read(request.receive, limits)
    except TimeoutError as error:
        raise BodyTooSlow(
            f"The body did not arrive within {limits.body_timeout_s:g} s, or nothing more of it came for "
            f"{limits.body_idle_s:g} s."
        ) from error


def _check_headers(request: Request[Any, Any, Any], limits: Limits) -> None:
    media_type, _, parameters = request.headers.get("content-type", "").partition(";")
    if media_type.strip().lower() != "application/json" or not _is_utf8(parameters):
        raise MediaTypeRefused(
            "The body is not declared as JSON.", hint="Send it with the header Content-Type: application/json."
        )
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise MediaTypeRefused("Compressed bodies are not accepted.", hint="Send the JSON as it is.")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limits.max_body_bytes:
        raise _too_large(limits.max_body_bytes)


def _is_utf8(parameters: str) -> bool:
    """Whether the content type's parameters allow UTF-8; JSON has no other encoding."""
    charset = next((value for name, _, value in _pairs(parameters) if name == "charset"), "utf-8")
    return charset in ("utf-8", "utf8")


def _pairs(parameters: str) -> list[tuple[str, str, str]]:
    return [part.strip().lower().replace('"', "").partition("=") for part in parameters.split(";")]


async def _read(receive: Receive, limits: Limits) -> bytes:
    body = bytearray()
    while True:
        async with asyncio.timeout(limits.body_idle_s):
            message = await receive()
        if message["type"] != "http.request":
            raise InvalidRequest("The body ended early.", hint="Check its Content-Length or its chunks.")
        body += message["body"]
        if len(body) > limits.max_body_bytes:
            raise _too_large(limits.max_body_bytes)
        if not message["more_body"]:
            return bytes(body)


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"The body is over the limit of {max_bytes} bytes.", hint="The setting server.max_body_bytes is the limit."
    )
