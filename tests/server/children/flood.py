"""Stream without ever waiting to a client that closes, and say how that ended; a loop that spins never says it."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncGenerator
from typing import Any

from mlxm.errors import Cancelled
from mlxm.server.embedded import _Granian
from mlxm.server.listen import open_listener
from mlxm.server.stream import TokenStream


async def flood() -> AsyncGenerator[bytes, None]:
    """64 kB at a time, for ever, without a single wait."""
    while True:
        yield b"x" * 65536


async def main() -> None:
    """Serve one stream, close it from the other side, and wait for its end."""
    ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def finish(cut_short: Cancelled | None) -> None:
        ended.set_result(type(cut_short).__name__)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            stream = TokenStream(flood(), media_type="text/plain", headers={}, send_timeout_s=30, finish=finish)
            await receive()
            await stream(scope, receive, send)

    listener = open_listener("127.0.0.1", 0)
    address = listener.getsockname()
    granian = _Granian(app, listener)
    serving = asyncio.create_task(granian.serve())
    await asyncio.to_thread(close_in_the_middle, address)
    sys.stdout.write(await ended)
    granian.stop()
    await serving


def close_in_the_middle(address: tuple[str, int]) -> None:
    """Read a little of an endless answer, and leave."""
    with socket.create_connection(address) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        client.recv(1000)


if __name__ == "__main__":
    asyncio.run(main())
