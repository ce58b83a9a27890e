"""Granian inside this process: one pid, one loop, our own signal handlers, and the socket that we opened."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from granian.constants import Interfaces
from granian.http import HTTP1Settings
from granian.net import SocketHolder  # type: ignore[attr-defined]  # Granian names it for no one
from granian.server.embed import Server

from mlxm.server.app import create_app
from mlxm.server.listen import BACKLOG
from mlxm.server.services import Services

# A connection costs little; what limits the work is what runs behind it.
MAX_CONNECTIONS = 8192
MAX_HEADER_BYTES = 32 * 1024
THREAD_END_S = 0.05
"""Granian's thread lets go of Python a little after it has said so; an interpreter that ends before that is aborted."""


class EmbeddedServer:
    """Serves the application on a listening socket, which is its own from then on."""

    def __init__(self, services: Services, listener: socket.socket) -> None:
        self._granian = _Granian(create_app(services), listener)

    async def serve(self) -> None:
        """Serve until `stop` was called and every connection has ended."""
        await self._granian.serve()
        await asyncio.sleep(THREAD_END_S)

    def stop(self) -> None:
        """Take no more connections."""
        self._granian.stop()  # type: ignore[no-untyped-call]  # as Granian has it


class _Granian(Server):
    def __init__(self, app: Any, listener: socket.socket) -> None:
        super().__init__(
            app,
            interface=Interfaces.ASGI,
            websockets=False,
            backlog=BACKLOG,
            backpressure=MAX_CONNECTIONS,
            http1_settings=HTTP1Settings(max_buffer_size=MAX_HEADER_BYTES),
            log_enabled=False,  # all that it logs is known here, or logged by the guard
        )
        self._listener = listener

    def _init_shared_socket(self) -> None:
        """Serve on the socket that is open already: one of Granian's own could be shared by a second server."""
        is_uds = self._listener.family == socket.AF_UNIX
        self._shd = SocketHolder(self._listener.detach(), is_uds, BACKLOG)  # type: ignore[assignment,call-arg]  # native
