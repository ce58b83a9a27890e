"""Token streams that end when their reader does, and work that ends when its client leaves.

The framework's own stream spins or hangs when a client closes while the producer waits on a full connection, and it
waits for ever for a client that does not read. This one has a watcher for the disconnect, gives the watcher a turn
after each chunk, and bounds every send.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from litestar.response.base import ASGIResponse
from litestar.types import Receive, Scope, Send

from mlxm.errors import Cancelled

T = TypeVar("T")


class ClientGone(Cancelled):
    """The client closed its connection."""


class ReaderStalled(Cancelled):
    """The client stays connected and does not read."""


async def unless_gone(work: Coroutine[Any, Any, T], receive: Receive) -> T:
    """The outcome of `work`, which is cancelled when the client leaves; ClientGone then.

    `receive` has delivered the whole body before: all that it can still say is that the client left.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.create_task(_until_gone(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            await _end(working)
            if working.cancelled():
                raise ClientGone("The client left before the answer was complete.")
        return working.result()
    finally:
        await _end(working, watching)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks and wait until they have finished with their cleaning up."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


class TokenStream(ASGIResponse):
    """A streamed response; `finish` is awaited when it has ended in whatever way, and told why it was cut short."""

    _should_set_content_length = False

    def __init__(
        self,
        chunks: AsyncGenerator[bytes, None],
        *,
        media_type: str,
        headers: dict[str, str],
        send_timeout_s: float,
        finish: Callable[[Cancelled | None], Awaitable[None]],
    ) -> None:
        super().__init__(media_type=media_type, headers=headers)
        self._chunks = chunks
        self._send_timeout_s = send_timeout_s
        self._finish = finish

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request."""
        cut_short: Cancelled | None = None
        try:
            async with aclosing(self._chunks):
                await super().__call__(scope, receive, send)
        except (ClientGone, ReaderStalled) as error:
            cut_short = error
        finally:
            await self._finish(cut_short)

    async def send_body(self, send: Send, receive: Receive) -> None:
        """Send all chunks, unless the client leaves or stops reading."""
        await unless_gone(self._send_chunks(send), receive)

    async def _send_chunks(self, send: Send) -> None:
        async with aclosing(self._chunks) as chunks:
            async for chunk in chunks:
                await self._send(send, chunk, more=True)
                await asyncio.sleep(0)  # a send that never waits would keep the watcher from its turn for ever
        await self._send(send, b"", more=False)

    async def _send(self, send: Send, chunk: bytes, *, more: bool) -> None:
        try:
            async with asyncio.timeout(self._send_timeout_s):
                await send({"type": "http.response.body", "body": chunk, "more_body": more})
        except TimeoutError as error:
            raise ReaderStalled(f"The client did not read for {self._send_timeout_s:g} s.") from error
