"""A real Granian on a real port inside the test's own loop, and clients that behave badly on purpose."""

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx
import openai

from mlxm.downloads import Downloads
from mlxm.hub_pool import PoolOrders
from mlxm.server.doors import Doors
from mlxm.server.embedded import EmbeddedServer
from mlxm.server.entry import Trail
from mlxm.server.limits import Limits, Timeouts
from mlxm.server.listen import open_listener
from mlxm.server.live import Live
from mlxm.server.log import Log
from mlxm.server.services import Services
from mlxm.store.audit import AuditRow
from mlxm.store.db import Database
from mlxm.testing.backends import ECHO_MODEL, ScriptedBackend
from mlxm.types import Backend, Models

BOUND_S = 10.0
CHAT = "/v1/chat/completions"


@dataclass
class KeptRows:
    """A trail in memory; `arrived` is set whenever a row is there."""

    rows: list[AuditRow] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def record(self, row: AuditRow) -> None:
        """Keep a row."""
        self.rows.append(row)
        self.arrived.set()


class KeptLines(Log):
    """A log in memory."""

    def __init__(self) -> None:
        super().__init__("debug")
        self.lines: list[dict[str, Any]] = []

    def debug(self, event: str, **fields: object) -> None:
        """Keep a line."""
        self.lines.append({"level": "debug", "event": event, **fields})

    def info(self, event: str, **fields: object) -> None:
        """Keep a line."""
        self.lines.append({"level": "info", "event": event, **fields})

    def error(self, event: str, error: BaseException | None = None, **fields: object) -> None:
        """Keep a line and its error."""
        self.lines.append({"level": "error", "event": event, "error": error, **fields})


@dataclass(frozen=True)
class Running:
    """A server under test."""

    port: int
    live: Live
    http: httpx.AsyncClient

    async def chat(self, *, content: str = "hello there", **fields: Any) -> httpx.Response:
        """Ask for a chat completion."""
        return await self.http.post(CHAT, json=chat_body(content=content, **fields))

    def sdk(self) -> openai.AsyncOpenAI:
        """The real SDK; it repeats nothing by itself."""
        return openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{self.port}/v1", api_key="none", max_retries=0, timeout=BOUND_S
        )

    async def assert_answers(self) -> None:
        """It is alive, and still serves."""
        response = await self.http.get("/health")
        assert response.status_code == 200
        response = await self.chat()
        assert response.status_code in (200, 404), response.text


@asynccontextmanager
async def serving(
    backend: Backend,
    *,
    trail: Trail | None = None,
    limits: Limits | None = None,
    ready: Callable[[], str | None] = lambda: None,
    log: Log | None = None,
    control_token: str | None = None,
    downloads: Callable[[], Awaitable[Downloads]] | None = None,
    orders: PoolOrders | None = None,
    doors: Doors | None = None,
    timeouts: Timeouts | None = None,
    models: Models | None = None,
    database: Database | None = None,
    keep_responses_s: float = 3600.0,
) -> AsyncIterator[Running]:
    """Serve `backend` until the block ends."""
    listener = open_listener("127.0.0.1", 0)
    port = listener.getsockname()[1]
    live = Live()
    services = Services(
        backend=backend,
        ready=ready,
        trail=trail,
        limits=Limits() if limits is None else limits,
        live=live,
        log=KeptLines() if log is None else log,
        control_token=control_token,
        downloads=downloads,
        orders=orders,
        doors=Doors() if doors is None else doors,
        timeouts=Timeouts() if timeouts is None else timeouts,
        models=backend if isinstance(backend, ScriptedBackend) else models,
        database=None if database is None else partial(_given, database),
        keep_responses_s=keep_responses_s,
    )
    server = EmbeddedServer(services, listener)
    task = asyncio.create_task(server.serve())
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=BOUND_S) as http:
            yield Running(port, live, http)
    finally:
        server.stop()
        async with asyncio.timeout(BOUND_S):
            await task


async def _given(database: Database) -> Database:
    return database


def chat_body(*, content: str = "hello there", **fields: Any) -> dict[str, Any]:
    """A small request."""
    return {"model": ECHO_MODEL, "messages": [{"role": "user", "content": content}], **fields}


def post_bytes(body: bytes, *headers: str, path: str = CHAT, length: int | None = None) -> bytes:
    """An HTTP request by hand."""
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(body) if length is None else length}",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def chat_bytes(**fields: Any) -> bytes:
    """A chat request by hand."""
    return post_bytes(json.dumps(chat_body(**fields)).encode())


class RawClient:
    """A socket with nothing between it and the test."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    @classmethod
    @asynccontextmanager
    async def connected(cls, port: int, *, receive_buffer_bytes: int | None = None) -> "AsyncIterator[RawClient]":
        """Open a connection, which is closed at the latest when the block ends."""
        with socket.socket() as sock:
            if receive_buffer_bytes is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
            sock.settimeout(0)
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
            yield cls(sock)

    async def send(self, data: bytes) -> None:
        """Send all of it."""
        await asyncio.get_running_loop().sock_sendall(self._sock, data)

    async def read_until(self, mark: bytes) -> bytes:
        """Everything up to and with `mark`."""
        got = b""
        async with asyncio.timeout(BOUND_S):
            while mark not in got:
                chunk = await asyncio.get_running_loop().sock_recv(self._sock, 65536)
                assert chunk, got
                got += chunk
        return got

    async def read_to_end(self) -> bytes:
        """Everything until the server closes."""
        got = b""
        async with asyncio.timeout(BOUND_S):
            while chunk := await asyncio.get_running_loop().sock_recv(self._sock, 1 << 20):
                got += chunk
        return got

    def close(self) -> None:
        """Leave politely: FIN."""
        self._sock.close()

    def half_close(self) -> None:
        """Say that nothing more will be sent."""
        self._sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Leave rudely: RST."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._sock.close()


async def until(holds: Callable[[], bool]) -> None:
    """Wait for what nobody tells."""
    async with asyncio.timeout(BOUND_S):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def within_bound(event: asyncio.Event) -> None:
    """Wait for something that must happen soon."""
    async with asyncio.timeout(BOUND_S):
        await event.wait()
