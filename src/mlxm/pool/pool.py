"""Which models are loaded, each in a worker of its own.

A model is loaded when it is first asked for, once however many ask, and again when it is asked for after a crash.
When a name leads to another folder than before, that one is loaded, and the old one goes with its last request.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial
from pathlib import Path

import msgspec

from mlxm.errors import Draining
from mlxm.frames import Generate, Loaded, Stats
from mlxm.pool.stream import RequestEvent
from mlxm.pool.worker import OnDeath, OnWords, Worker, WorkerOptions, ignore


class LocalModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model on disk; `context_length` None means that its files do not say."""

    name: str
    folder: Path
    context_length: int | None


class LoadedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model that is in memory now; `facts` is what it said when it was loaded, `stats` what it said last."""

    name: str
    pid: int
    num_leases: int
    facts: Loaded
    stats: Stats | None


class _Slot:
    """A model's place: its worker, or the task that will have it; and how many requests hold it."""

    def __init__(self, name: str, loading: asyncio.Task[Worker]) -> None:
        self.name = name
        self.loading = loading
        loading.add_done_callback(_heed)
        self.num_leases = 0
        self._on_idle: Callable[[], None] | None = None

    @property
    def is_usable(self) -> bool:
        """Whether it still loads, or has a worker that lives."""
        return not self.loading.done() or self.worker is not None

    @property
    def worker(self) -> Worker | None:
        """The worker once it is loaded, while it lives."""
        task = self.loading
        if not task.done() or task.cancelled() or task.exception() is not None:
            return None
        worker = task.result()
        return worker if worker.is_alive else None

    def release(self) -> None:
        """Give a lease back."""
        self.num_leases -= 1
        self._tell_idle()

    def when_idle(self, tell: Callable[[], None]) -> None:
        """Call `tell` once nobody holds it, which may be now."""
        self._on_idle = tell
        self._tell_idle()

    def _tell_idle(self) -> None:
        if self.num_leases == 0 and self._on_idle is not None:
            self._on_idle()

    async def end(self) -> None:
        """End its worker, loaded or not."""
        self.loading.cancel()
        await asyncio.wait([self.loading])
        if self.worker is not None:
            await self.worker.stop()


class Pool:
    """Loads models on demand and runs requests on them."""

    def __init__(self, options: WorkerOptions, on_death: OnDeath = ignore, on_words: OnWords = ignore) -> None:
        self._options = options
        self._on_death = on_death
        self._on_words = on_words
        self._slots: dict[tuple[str, Path], _Slot] = {}
        self._outdated: dict[_Slot, asyncio.Task[None] | None] = {}  # with what ends each, once nobody holds it
        self._is_closed = False

    async def generate(self, model: LocalModel, request: Generate) -> AsyncGenerator[RequestEvent]:
        """The request's events, after `model` has been loaded if need be; closing it early cancels the request."""
        slot = self._slot(model)
        slot.num_leases += 1
        try:
            worker = await self._ready(slot)
            stream = worker.generate(request, slot.release)
        except BaseException:
            slot.release()
            raise
        async with aclosing(stream):
            async for event in stream:
                yield event

    def loaded(self) -> tuple[LoadedModel, ...]:
        """The models in memory."""
        alive = ((slot, slot.worker) for slot in (*self._slots.values(), *self._outdated))
        return tuple(
            LoadedModel(
                name=slot.name, pid=worker.pid, num_leases=slot.num_leases, facts=worker.loaded, stats=worker.stats
            )
            for slot, worker in alive
            if worker is not None and worker.loaded is not None
        )

    async def close(self) -> None:
        """End all workers; what waits for a model fails with Draining."""
        self._is_closed = True
        await asyncio.gather(*(slot.end() for slot in (*self._slots.values(), *self._outdated)))
        await asyncio.gather(*(ending for ending in self._outdated.values() if ending is not None))

    def _slot(self, model: LocalModel) -> _Slot:
        if self._is_closed:
            raise _closing()
        key = (model.name, model.folder)
        slot = self._slots.get(key)
        if slot is None or not slot.is_usable:
            self._outdate(model)
            loading = asyncio.create_task(self._load(model), name=f"load {model.name}")
            slot = self._slots[key] = _Slot(model.name, loading)
        return slot

    def _outdate(self, model: LocalModel) -> None:
        """Let go of what the model's name led to before: its weights belong to another tokenizer."""
        for key in [(name, folder) for name, folder in self._slots if name == model.name and folder != model.folder]:
            slot = self._slots.pop(key)
            self._outdated[slot] = None
            slot.when_idle(partial(self._end_outdated, slot))

    def _end_outdated(self, slot: _Slot) -> None:
        if not self._is_closed:  # then close() ends it
            ending = self._outdated[slot] = asyncio.create_task(slot.end(), name=f"end the old {slot.name}")
            ending.add_done_callback(lambda _: self._outdated.pop(slot))

    async def _load(self, model: LocalModel) -> Worker:
        worker = await Worker.start(model.name, self._options, self._on_death, self._on_words)
        await worker.load(model.folder)
        return worker

    async def _ready(self, slot: _Slot) -> Worker:
        """Wait for the one load; a waiter that leaves does not end it, and the pool's closing is no cancellation."""
        await asyncio.wait([slot.loading])
        if slot.loading.cancelled():
            raise _closing()
        return slot.loading.result()


def _heed(task: asyncio.Task[Worker]) -> None:
    """Those who asked for the model are told why it failed; when all have left, asyncio need not complain."""
    if not task.cancelled():
        task.exception()


def _closing() -> Draining:
    return Draining("mlxm is stopping.", hint="Send the request again once it runs.", retry_after_s=1.0)
