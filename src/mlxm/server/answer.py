"""One answer under way: the backend's events, in a task of their own.

So a wait for the next event can time out without losing it, and the answer can be ended from outside: by a client that
left, by its deadline, or by a server that shuts down. The buffer is small; a backend that is ahead waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from mlxm.errors import InternalError, MlxmError, TimedOut
from mlxm.server.entry import Entry
from mlxm.server.errors import guarded
from mlxm.server.limits import Deadline
from mlxm.server.services import Services
from mlxm.types import Ended, Event

MAX_BUFFERED = 64


class Answer:
    """The events of one request; `close` must be called, and frees everything."""

    def __init__(
        self, services: Services, events: AsyncGenerator[Event, None], entry: Entry, deadline: Deadline
    ) -> None:
        self._events = events
        self._live = services.live
        self._entry = entry
        self._buffer: list[Event] = []
        self._arrived = asyncio.Event()
        self._taken = asyncio.Event()
        self._failure: MlxmError | None = None
        self._task = asyncio.create_task(guarded(self._pump(), entry.request_id, services.log))
        self._task.add_done_callback(lambda _: self._arrived.set())
        self._live.add(self.fail)
        self._alarm = asyncio.get_running_loop().call_later(deadline.within_s, self.fail, _too_slow(deadline))

    async def take(self, wait_s: float | None = None) -> list[Event]:
        """All events that have arrived since; nothing when none came within `wait_s`. Raises what ended the answer."""
        if not self._arrived.is_set():
            try:
                async with asyncio.timeout(wait_s):
                    await self._arrived.wait()
            except TimeoutError:
                return []
        events, self._buffer = self._buffer, []
        if not events:
            raise self._reason()
        self._taken.set()
        if not self._task.done():
            self._arrived.clear()
        return events

    async def take_all(self) -> list[Event]:
        """Every event to the end."""
        events: list[Event] = []
        while not (events and isinstance(events[-1], Ended)):
            events += await self.take()
        return events

    def fail(self, error: MlxmError) -> None:
        """End the answer with `error`, after what has arrived already."""
        if self._failure is None and not self._task.done():
            self._failure = error
            self._task.cancel()

    async def close(self) -> None:
        """Cancel what still runs, and wait until the backend has let go of it."""
        self._alarm.cancel()
        self._live.discard(self.fail)
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _pump(self) -> None:
        async with aclosing(self._events) as events:
            async for event in events:
                self._entry.see(event)
                self._buffer.append(event)
                self._arrived.set()
                while len(self._buffer) >= MAX_BUFFERED:
                    self._taken.clear()
                    await self._taken.wait()

    def _reason(self) -> MlxmError:
        """Why there is nothing more."""
        if self._failure is not None:
            return self._failure
        error = None if self._task.cancelled() else self._task.exception()
        return error if isinstance(error, MlxmError) else InternalError("The answer ended without its last event.")


def _too_slow(deadline: Deadline) -> TimedOut:
    return TimedOut(
        f"The answer was not complete within {deadline.within_s:g} s.",
        hint=f"Ask for fewer tokens, or raise the setting {deadline.setting}.",
    )
