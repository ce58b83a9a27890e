"""Looks after the pool now and then: who has stayed long enough, whether memory runs short, who ought to be there.

The order of mildness: caches are given back first, then models go that nobody uses; one in use never does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Protocol

from mlxm.pool.options import LocalModel, PoolOptions
from mlxm.pool.pressure import Pressure, Probe
from mlxm.pool.record import Record
from mlxm.pool.room import Room
from mlxm.pool.slot import Slot


class Kept(Protocol):
    """What is looked after; the pool is it."""

    @property
    def options(self) -> PoolOptions:
        """What holds now."""
        ...

    def slots(self) -> Iterable[Slot]:
        """Everybody who is there or on the way."""
        ...

    def records(self) -> Iterable[Record]:
        """What is remembered of each model."""
        ...

    def begin(self, model: LocalModel) -> Slot:
        """Load a model."""
        ...

    def retire(self, slot: Slot) -> None:
        """Have a model go once nobody holds it."""
        ...


class Keeper:
    """One task, from the first model on."""

    def __init__(self, kept: Kept, room: Room, probe: Probe) -> None:
        self._kept = kept
        self._room = room
        self._probe = probe
        self._task: asyncio.Task[None] | None = None
        self._num_pressed = 0

    def start(self) -> None:
        """Begin, unless that is done already."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="pool keeper")

    def stop(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(self._kept.options.tend_s)

    def look(self) -> None:
        """Do once what there is to do."""
        now_s = asyncio.get_running_loop().time()
        self._expire(now_s)
        pressure = self._probe()
        self._heed(pressure)
        self._keep_to_budget()
        self._bring_back(now_s)

    def _expire(self, now_s: float) -> None:
        for slot in list(self._kept.slots()):
            keep_s = slot.record.keep_alive_s(self._kept.options)
            if slot.is_idle and keep_s is not None and now_s - slot.record.last_used_s >= keep_s:
                self._kept.retire(slot)

    def _heed(self, pressure: Pressure) -> None:
        """The first time workers shrink; when that has not helped, or cannot help enough, an idle model goes."""
        if pressure.level == "normal":
            self._num_pressed = 0
            return
        if self._num_pressed == 0:
            self._shrink(self._kept.slots())
        if self._num_pressed > 0 or pressure.level == "critical":
            self._room.evict_idle(1, 0)
        self._num_pressed += 1

    def _keep_to_budget(self) -> None:
        """Models may take more than was thought, or the budget may have become smaller."""
        excess = self._room.used_bytes() - self._room.budget_bytes()
        if excess > 0:
            self._shrink(slot for slot in self._kept.slots() if slot.used_bytes > slot.reserved_bytes)
            self._room.evict_idle(excess, 0)

    def _bring_back(self, now_s: float) -> None:
        """Load those that are to stay and are not there."""
        present = {slot.model.name for slot in self._kept.slots()}
        for record in list(self._kept.records()):
            if record.stays and record.model is not None and record.name not in present and record.may_retry(now_s):
                self._kept.begin(record.model)

    def _shrink(self, slots: Iterable[Slot]) -> None:
        for slot in slots:
            if slot.worker is not None:
                slot.worker.shrink()
