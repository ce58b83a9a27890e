"""What every request passes before the framework sees it: its id, the doors, the count of those under way, the drain.

It also puts the id into every response, whatever made that response, and reads an unread body to its end first: a
client that still sends when the connection closes never gets to see its answer.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send

from mlxm.errors import MlxmError
from mlxm.server.doors import Doors, preflight_headers
from mlxm.server.errors import encode_error, error_headers, guarded, status_of
from mlxm.server.live import Live, draining
from mlxm.server.log import Log
from mlxm.server.request_id import HEADERS, assign_request_id

PROBES: Final = frozenset({"/health", "/ready"})

_DISCARD_BYTES = 64 * 1024 * 1024
_DISCARD_S = 5.0
_DISCARD_IDLE_S = 0.3


class Guard:
    """An ASGI application around another."""

    def __init__(self, app: ASGIApp, live: Live, log: Log, doors: Doors) -> None:
        self._app = app
        self._live = live
        self._log = log
        self._doors = doors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request or the server's life."""
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        request_id = assign_request_id(scope, self._live.request_ids)
        exchange = _Exchange(scope, receive, send, request_id, self._log)
        try:
            exchange.headers = self._doors.check(scope["headers"])
        except MlxmError as error:
            await exchange.refuse(error)
            return
        if exchange.is_preflight:
            await exchange.answer_preflight()
        elif scope["path"] in PROBES:
            await exchange.run(self._app)
        elif self._live.is_draining:
            await exchange.refuse(draining())
        else:
            with self._live.request(exchange.request_id):
                await exchange.run(self._app)


class _Exchange:
    """One request on its way through, and what is known of its response."""

    def __init__(self, scope: HTTPScope, receive: Receive, send: Send, request_id: str, log: Log) -> None:
        self._scope = scope
        self._receive_raw = receive
        self._send_raw = send
        self._start_s = time.monotonic()
        self.request_id = request_id
        self._log = log
        self._status: int | None = None
        self._is_body_read = not _has_body(scope)
        self.headers: list[tuple[bytes, bytes]] = []
        """What every response has besides its own."""

    @property
    def is_preflight(self) -> bool:
        """Whether a browser asks what a page of an allowed origin may do."""
        return bool(self.headers) and self._scope["method"] == "OPTIONS"

    async def answer_preflight(self) -> None:
        """Say what such a page may do."""
        await self._send({"type": "http.response.start", "status": 204, "headers": preflight_headers()})
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})
        self._write_line()

    async def run(self, app: ASGIApp) -> None:
        """Let `app` answer; whatever it fails to answer is answered here."""
        try:
            await guarded(app(self._scope, self._receive, self._send), self.request_id, self._log)
        except MlxmError as error:
            if self._status is None:
                await self.refuse(error)
        finally:
            self._write_line()

    async def refuse(self, error: MlxmError) -> None:
        """Answer with an error."""
        body = encode_error(error, self.request_id)
        headers = {"content-type": "application/json", "content-length": str(len(body)), **error_headers(error)}
        encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status_of(error), "headers": encoded})
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def _receive(self) -> Any:
        message = await self._receive_raw()
        if message["type"] != "http.request" or not message["more_body"]:
            self._is_body_read = True
        return message

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._discard_body()
            self._status = message["status"]
            encoded_id = self.request_id.encode()
            message["headers"] = [*message["headers"], *self.headers, *((name, encoded_id) for name in HEADERS)]
        await self._send_raw(message)

    async def _discard_body(self) -> None:
        """Read on while more is coming, within bounds; a client that has stopped sending is able to read."""
        num_bytes = 0
        deadline_s = time.monotonic() + _DISCARD_S
        try:
            while not self._is_body_read and num_bytes < _DISCARD_BYTES and time.monotonic() < deadline_s:
                async with asyncio.timeout(_DISCARD_IDLE_S):
                    message = await self._receive()
                num_bytes += len(message.get("body", b""))
        except TimeoutError:
            return

    def _write_line(self) -> None:
        write = self._log.debug if self._scope["path"] in PROBES else self._log.info
        write(
            "request",
            request_id=self.request_id,
            method=self._scope["method"],
            path=self._scope["path"],
            status=self._status,
            duration_ms=round((time.monotonic() - self._start_s) * 1000, 1),
        )


def _has_body(scope: HTTPScope) -> bool:
    """Whether a body follows that is worth reading before the answer; who asks first has not sent it yet."""
    headers = dict(scope["headers"])
    if b"expect" in headers:
        return False
    return b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"
