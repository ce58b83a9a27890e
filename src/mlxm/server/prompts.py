"""Several prompts of one request: each is a request of its own to the backend, and their events come as one stream.

The choices of the second prompt follow those of the first. The buffer is small; a backend that is ahead waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import msgspec

from mlxm.types import Backend, CompletionRequest, Ended, Event, Started, Usage

MAX_BUFFERED = 256


def complete_all(backend: Backend, requests: Sequence[CompletionRequest]) -> AsyncGenerator[Event, None]:
    """The answers to all of `requests`: Started first, Ended last; closing it early cancels every one."""
    return backend.complete(requests[0]) if len(requests) == 1 else _Merge(backend, requests).events()


class _Merge:
    """The requests under way, each in a task, and what they have said that is not taken yet."""

    def __init__(self, backend: Backend, requests: Sequence[CompletionRequest]) -> None:
        self._backend = backend
        self._requests = requests
        self._buffer: list[Event] = []
        self._arrived = asyncio.Event()
        self._taken = asyncio.Event()
        self._num_running = len(requests)
        self._failure: BaseException | None = None
        self._usage = Usage()
        self._num_ended = 0

    async def events(self) -> AsyncGenerator[Event, None]:
        """Every event, as it comes; the first failure of any request is that of all."""
        tasks = {asyncio.create_task(self._pump(number)) for number in range(len(self._requests))}
        try:
            for task in tasks:
                task.add_done_callback(self._see_end)
            yield Started(prompt_tokens=0)  # known one by one; the usage at the end has the sum
            while self._num_running or self._buffer:
                await self._arrived.wait()
                for event in self._take():
                    yield event
                if self._failure is not None:
                    raise self._failure
            if self._num_ended == len(self._requests):
                yield Ended(usage=self._usage)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def _take(self) -> list[Event]:
        events, self._buffer = self._buffer, []
        self._arrived.clear()
        self._taken.set()
        return events

    async def _pump(self, number: int) -> None:
        request = self._requests[number]
        async with aclosing(self._backend.complete(request)) as events:
            async for event in events:
                self._see(event, number * request.num_choices)
                while len(self._buffer) >= MAX_BUFFERED:
                    self._taken.clear()
                    await self._taken.wait()

    def _see(self, event: Event, first_choice: int) -> None:
        if isinstance(event, Ended):
            self._num_ended += 1
            self._usage = _sum(self._usage, event.usage)
        elif not isinstance(event, Started):
            self._buffer.append(msgspec.structs.replace(event, choice=first_choice + event.choice))
            self._arrived.set()

    def _see_end(self, task: asyncio.Task[None]) -> None:
        self._num_running -= 1
        if self._failure is None and not task.cancelled():
            self._failure = task.exception()
        self._arrived.set()


def _sum(one: Usage, other: Usage) -> Usage:
    return Usage(
        prompt_tokens=one.prompt_tokens + other.prompt_tokens,
        completion_tokens=one.completion_tokens + other.completion_tokens,
        cached_tokens=one.cached_tokens + other.cached_tokens,
    )
