"""Which models are loaded, each in a worker of its own.

A model is loaded when it is first asked for, once however many ask, and again when it is asked for after a crash.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import msgspec

from mlxm.errors import Draining
from mlxm.frames import Generate
from mlxm.pool.stream import RequestEvent
from mlxm.pool.worker import Worker, WorkerOptions


class LocalModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model on disk; `context_length` None means that its files do not say."""

    name: str
    folder: Path
    context_length: int | None


class LoadedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model that is in memory now."""

    name: str
    pid: int
    num_leases: int


class _Slot:
    """A model's place: its worker, or the task that will have it; and how many requests hold it."""

    def __init__(self, loading: asyncio.Task[Worker]) -> None:
        self.loading = loading
        loading.add_done_callback(_heed)
        self.num_leases = 0

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


class Pool:
    """Loads models on demand and runs requests on them."""

    def __init__(self, options: WorkerOptions) -> None:
        self._options = options
        self._slots: dict[str, _Slot] = {}
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
        alive = ((name, slot, slot.worker) for name, slot in self._slots.items())
        return tuple(
            LoadedModel(name=name, pid=worker.pid, num_leases=slot.num_leases)
            for name, slot, worker in alive
            if worker is not None
        )

    async def close(self) -> None:
        """End all workers; what waits for a model fails with Draining."""
        self._is_closed = True
        slots = list(self._slots.values())
        for slot in slots:
            slot.loading.cancel()
        await asyncio.gather(*(slot.loading for slot in slots), return_exceptions=True)
        await asyncio.gather(*(slot.worker.stop() for slot in slots if slot.worker is not None))

    def _slot(self, model: LocalModel) -> _Slot:
        if self._is_closed:
            raise _closing()
        slot = self._slots.get(model.name)
        if slot is None or not slot.is_usable:
            loading = asyncio.create_task(self._load(model), name=f"load {model.name}")
            slot = self._slots[model.name] = _Slot(loading)
        return slot

    async def _load(self, model: LocalModel) -> Worker:
        worker = await Worker.start(model.name, self._options)
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
