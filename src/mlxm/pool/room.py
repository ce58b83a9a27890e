"""Finds room for a model: in the budget, beside other processes, and in the machine; if need be others go for it.

Models are let in one after another, in the order in which they were asked for. Idle ones go first; when none is idle
for a while, those in use are told to take nobody in any more, so that a model which waits gets its turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Final, Protocol

from mlxm.errors import OutOfMemory, StoreError
from mlxm.pool.budget import Need
from mlxm.pool.limit import GB
from mlxm.pool.options import Parts, PoolOptions
from mlxm.pool.policy import Tenant, choose_victims
from mlxm.pool.slot import Signal, Slot

_LOOK_S: Final = 0.25
"""How often room is looked for that other processes may have left."""
_RETRY_S: Final = 5.0


class Residents(Protocol):
    """Who is in memory, and how to have somebody leave; the pool is it."""

    @property
    def options(self) -> PoolOptions:
        """What holds now."""
        ...

    def slots(self) -> Iterable[Slot]:
        """Everybody who takes memory, or is on the way."""
        ...

    def is_leaving(self, slot: Slot) -> bool:
        """Whether it was told to leave."""
        ...

    def retire(self, slot: Slot) -> None:
        """Have it leave once nobody holds it."""
        ...


class Room:
    """The memory that models may take, and the line before it."""

    def __init__(self, residents: Residents, parts: Parts, changed: Signal) -> None:
        self._residents = residents
        self._parts = parts
        self._changed = changed
        self._turn = asyncio.Lock()

    def budget_bytes(self) -> int:
        """What models may take together."""
        return self._residents.options.memory.of(self._parts.probe().total_bytes)

    def used_bytes(self) -> int:
        """What they take, or have been promised."""
        return sum(slot.used_bytes for slot in self._residents.slots())

    async def admit(self, slot: Slot, need: Need) -> int:
        """Reserve memory for a slot, as much as it can make use of; raises OutOfMemory when there is none in time."""
        try:
            async with asyncio.timeout(self._residents.options.queue_s):
                async with self._turn:
                    return await self._find(slot, need)
        except TimeoutError:
            raise _busy(slot.model.name) from None

    async def settle(self, slot: Slot, num_bytes: int) -> None:
        """Correct what a slot has reserved: it is known now what it really takes, or it has gone."""
        slot.reserved_bytes = num_bytes
        try:
            await self._parts.ledger.promise(self._reserved(), self.budget_bytes())
        except StoreError as error:  # a model that is there, or gone, stays so
            self._parts.on_trouble(error)
        self._changed.fire()

    def _reserved(self) -> int:
        return sum(slot.reserved_bytes for slot in self._residents.slots())

    async def _find(self, slot: Slot, need: Need) -> int:
        clock = asyncio.get_running_loop().time
        patient_until_s = clock() + self._residents.options.patience_s
        while True:
            budget = self.budget_bytes()
            self._refuse_hopeless(slot, need, budget)
            free = await self._free_bytes(budget)
            num_missing = self._missing_places(slot)
            victims = self._idle_victims(need, free, num_missing)
            if victims == ():
                share = need.share_of(free, budget)
                slot.reserved_bytes = share
                if await self._parts.ledger.promise(self._reserved(), budget):
                    return share
                slot.reserved_bytes = 0
                victims = None
            if victims is not None:
                await self._evict(victims)
                continue
            if clock() >= patient_until_s:
                self._retire_busy(need.least_bytes - free, num_missing)
            await self._changed.wait(_LOOK_S)

    async def _free_bytes(self, budget: int) -> int:
        others = await self._parts.ledger.others()
        return min(budget - self.used_bytes() - others, self._parts.probe().available_bytes)

    def _missing_places(self, slot: Slot) -> int:
        """How many models have to go for the sake of their number alone."""
        most = self._residents.options.max_models
        present = sum(1 for other in self._residents.slots() if other is not slot and other.reserved_bytes)
        return 0 if most is None else present + 1 - most

    def _refuse_hopeless(self, slot: Slot, need: Need, budget: int) -> None:
        """Do not let anybody wait for what no waiting can bring."""
        staying = [other for other in self._residents.slots() if other is not slot and self._stays(other)]
        pinned_bytes = sum(other.used_bytes for other in staying)
        if need.least_bytes + pinned_bytes > budget:
            beside = f" beside the pinned ones, which take {_size(pinned_bytes)}" if pinned_bytes else ""
            least = _size(need.least_bytes)
            raise OutOfMemory(
                f"{slot.model.name} needs {least} of memory; models may take {_size(budget)}{beside}.",
                hint="Choose a smaller model, unpin others, or raise the setting memory.budget.",
                retry_after_s=_RETRY_S,
            )
        most = self._residents.options.max_models
        if most is not None and sum(1 for other in staying if other.reserved_bytes) >= most:
            raise OutOfMemory(
                f"There is no place for {slot.model.name}: {most} models may be loaded, and as many are pinned.",
                hint="Unpin one, or raise the setting models.max.",
                retry_after_s=_RETRY_S,
            )

    def _stays(self, slot: Slot) -> bool:
        """Whether it is never evicted; what leaves for its own successor does not stay."""
        return slot.record.stays and not self._residents.is_leaving(slot)

    def _idle_victims(self, need: Need, free: int, num_missing: int) -> tuple[Tenant, ...] | None:
        """Who goes so that the model has what it usually needs, or at least can work; None: nobody who would do."""
        idle = self._tenants(slot for slot in self._residents.slots() if slot.is_idle)
        for wanted in (need.usual_bytes, need.least_bytes):
            victims = choose_victims(
                idle, self._residents.options.policy, num_bytes=wanted - free, num_models=num_missing
            )
            if victims is not None:
                return victims
        return None

    def _retire_busy(self, num_bytes: int, num_models: int) -> None:
        """Have models in use take nobody in any more, as many as are needed beside those that leave already."""
        leaving = [slot for slot in self._residents.slots() if self._residents.is_leaving(slot)]
        staying = self._tenants(slot for slot in self._residents.slots() if slot.state == "ready")
        victims = choose_victims(
            staying,
            self._residents.options.policy,
            num_bytes=num_bytes - sum(slot.used_bytes for slot in leaving),
            num_models=num_models - len(leaving),
        )
        for slot in self._named(() if victims is None else victims):
            self._residents.retire(slot)

    async def _evict(self, victims: Sequence[Tenant]) -> None:
        slots = self._named(victims)
        for slot in slots:
            self._residents.retire(slot)
        for slot in slots:
            await slot.gone.wait()

    def _tenants(self, slots: Iterable[Slot]) -> list[Tenant]:
        options = self._residents.options
        return [
            slot.tenant(options) for slot in slots if not slot.record.stays and not self._residents.is_leaving(slot)
        ]

    def _named(self, victims: Sequence[Tenant]) -> list[Slot]:
        keys = {victim.key for victim in victims}
        return [slot for slot in self._residents.slots() if slot.number in keys]

    def evict_idle(self, num_bytes: int, num_models: int) -> None:
        """Have idle models go, as many as that takes, or all of them where that is not enough."""
        idle = self._tenants(slot for slot in self._residents.slots() if slot.is_idle)
        policy = self._residents.options.policy
        victims = choose_victims(idle, policy, num_bytes=num_bytes, num_models=num_models)
        for slot in self._named(idle if victims is None else victims):
            self._residents.retire(slot)


def _busy(name: str) -> OutOfMemory:
    """Said so that nobody takes it for a conversation that has grown too large."""
    return OutOfMemory(
        f"The server is busy: other models use its memory, and {name} found no place there in time.",
        hint="Send the same request again later.",
        retry_after_s=_RETRY_S,
    )


def queue_full(name: str) -> OutOfMemory:
    """The same, when too many wait already."""
    return OutOfMemory(
        f"The server is busy: other models use its memory, and too many requests wait for {name} and others already.",
        hint="Send the same request again later.",
        retry_after_s=_RETRY_S,
    )


def _size(num_bytes: int) -> str:
    return f"{num_bytes / GB:.1f} GB" if num_bytes >= GB else f"{num_bytes / 1000**2:.1f} MB"
