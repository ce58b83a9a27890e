"""Which models are loaded, each in a worker of its own, all within one budget of memory.

A model is loaded when it is first asked for, once however many ask. It goes when others need its memory, when nobody
has used it for as long as it may stay, or when it is told to; never while somebody uses it. When a name leads to
another folder than before, that one is loaded, and the old one goes with its last request.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from itertools import count

from mlxm.errors import Draining, MlxmError, NotFound, WorkerDied
from mlxm.frames import Delta, Generate, Loaded, RequestStarted
from mlxm.pool.budget import Need
from mlxm.pool.keeper import Keeper
from mlxm.pool.options import LocalModel, ModelWorker, Parts, PoolOptions
from mlxm.pool.record import Record
from mlxm.pool.room import Room, queue_full
from mlxm.pool.slot import Signal, Slot
from mlxm.pool.status import ModelStatus, PoolStatus, State
from mlxm.pool.stream import RequestEvent, RequestStream, leave_alone

__all__ = ["LocalModel", "Pool"]

OnDeath = Callable[[MlxmError], None]


class Pool:
    """Loads models on demand and runs requests on them."""

    def __init__(self, options: PoolOptions, parts: Parts) -> None:
        self._options = options
        self._parts = parts
        self._records: dict[str, Record] = {}
        self._slots: dict[str, Slot] = {}
        self._leaving: dict[Slot, asyncio.Task[None] | None] = {}  # with what ends each, once nobody holds it
        self._numbers = count(1)
        self._changed = Signal()
        self._room = Room(self, parts, self._changed)
        self._keeper = Keeper(self, self._room, parts.probe)
        self._watching: set[asyncio.Task[None]] = set()
        self._is_closed = False

    # ── requests ─────────────────────────────────────────────────────────────────────────────────

    async def generate(
        self, model: LocalModel, request: Generate, begin: Callable[[RequestStream], None] = leave_alone
    ) -> AsyncGenerator[RequestEvent]:
        """The request's events, after `model` has been loaded if need be; closing it early cancels the request.

        `begin` gets what can finish the request before its time.

        A worker that dies before it has said anything of the answer is replaced, and asked once more.
        """
        began_s = _now_s()
        is_started = has_answered = False
        for is_last in (False, True):
            try:
                async with aclosing(self._attempt(model, request, begin)) as events:
                    async for event in events:
                        if isinstance(event, RequestStarted) and is_started:
                            continue
                        is_started = True
                        if isinstance(event, Delta) and not has_answered:
                            has_answered = True
                            self._record(model.name).answered(_now_s() - began_s)
                        yield event
            except WorkerDied:
                if has_answered or is_last:
                    raise
            else:
                return

    async def _attempt(
        self, model: LocalModel, request: Generate, begin: Callable[[RequestStream], None]
    ) -> AsyncGenerator[RequestEvent]:
        slot = self._slot(model)
        slot.hold(_now_s())
        try:
            worker = await self._ready(slot)
            stream = worker.generate(request, slot.release)
        except BaseException:
            slot.release()
            raise
        async with aclosing(stream):
            begin(stream)
            async for event in stream:
                yield event

    async def _ready(self, slot: Slot) -> ModelWorker:
        """Wait for the one load; a waiter that leaves does not end it, and the pool's closing is no cancellation."""
        loading = slot.loading
        if loading is None or slot.worker is not None:
            return slot.present()
        if slot.state == "queued" and self._num_queued() > self._options.max_queued:
            raise queue_full(slot.model.name)
        await asyncio.wait([loading])
        if loading.cancelled():
            raise _closing() if self._is_closed else _unloading(slot.model.name)
        return loading.result()

    def _num_queued(self) -> int:
        return sum(slot.num_leases for slot in self._slots.values() if slot.state == "queued")

    # ── orders ───────────────────────────────────────────────────────────────────────────────────

    def load(
        self, model: LocalModel, *, pin: bool = False, ttl_s: float | None = None, context: int | None = None
    ) -> ModelStatus:
        """Begin to load a model unless it is there, and note how it is to be kept; how it stands then."""
        record = self._record(model.name)
        record.forgive()
        record.is_pinned = record.is_pinned or pin
        record.ttl_s = record.ttl_s if ttl_s is None else ttl_s
        if context is not None and context != record.context:
            record.context = context
            if (before := self._slots.get(model.name)) is not None:
                self.retire(before)
        return self._slot(model).status(self._options, _now_s())

    async def unload(self, name: str, *, now: bool = False) -> None:
        """Have a model go, after what is in flight or at once, and wait until its memory is free; NotFound."""
        slots = [slot for slot in self.slots() if slot.model.name == name]
        record = self._records.pop(name, None)
        if not slots and (record is None or record.failure is None):
            raise NotFound(f"{name} is not loaded.", hint="`mlxm ps` lists what is.", param="model")
        if record is not None:
            record.is_pinned = record.is_preloaded = False
        for slot in slots:
            self.retire(slot)
            if now:
                self._end(slot)
        for slot in slots:
            await slot.gone.wait()

    def restart(self, name: str, *, now: bool = False) -> ModelStatus:
        """Replace a model's worker; the new one is loaded while the old one finishes, where memory allows. NotFound."""
        record = self._records.get(name)
        if record is None or record.model is None:
            raise NotFound(f"{name} is not loaded.", hint=f"Load it with: mlxm load {name}", param="model")
        record.forgive()
        if (slot := self._slots.get(name)) is not None:
            self.retire(slot)
            if now:
                self._end(slot)
        return self._slot(record.model).status(self._options, _now_s())

    def keep(self, models: Iterable[LocalModel]) -> None:
        """These are the models that are loaded at start and never evicted; earlier ones may go."""
        wanted = {model.name: model for model in models}
        for record in self._records.values():
            record.is_preloaded = record.name in wanted
        for name, model in wanted.items():
            self._record(name).is_preloaded = True
            self._record(name).model = model
        self._keeper.start()

    def apply(self, options: PoolOptions) -> None:
        """Work with other options from now on; what has begun goes on as it began."""
        self._options = options
        self._changed.fire()

    async def close(self) -> None:
        """End all workers; what waits for a model fails with Draining."""
        self._is_closed = True
        self._keeper.stop()
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*(slot.end() for slot in self.slots()))
        await asyncio.gather(*(ending for ending in self._leaving.values() if ending is not None))
        await self._parts.launcher.close()
        await self._parts.ledger.withdraw()

    # ── how it stands ────────────────────────────────────────────────────────────────────────────

    @property
    def options(self) -> PoolOptions:
        """What holds now."""
        return self._options

    def slots(self) -> tuple[Slot, ...]:
        """Every life of every model that has not ended."""
        return (*self._slots.values(), *self._leaving)

    def is_leaving(self, slot: Slot) -> bool:
        """Whether a slot was told to leave."""
        return slot in self._leaving

    def records(self) -> tuple[Record, ...]:
        """What is remembered of each model."""
        return tuple(self._records.values())

    async def status(self) -> PoolStatus:
        """The pool, and every model of which there is something to say."""
        return PoolStatus(
            budget_bytes=self._room.budget_bytes(),
            reserved_bytes=self._room.used_bytes(),
            others_bytes=await self._parts.ledger.others(),
            pressure=self._parts.probe().level,
            models=tuple(self.models()),
        )

    def models(self) -> list[ModelStatus]:
        """Every model that is in memory, on its way, or cannot be had; one row each, the newest life of it."""
        rows = {
            slot.model.name: slot.status(self._options, _now_s()) for slot in (*self._leaving, *self._slots.values())
        }
        for record in self._records.values():
            if record.failure is not None and record.name not in rows:
                rows[record.name] = ModelStatus(
                    model=record.name,
                    state="broken" if record.is_broken else "failed",
                    reason=record.failure.message,
                    code=record.failure.code,
                    pinned=record.stays,
                    requests=record.num_uses,
                )
        return list(rows.values())

    def model(self, name: str) -> ModelStatus:
        """How one model stands; NotFound."""
        for row in self.models():
            if row.model == name:
                return row
        raise NotFound(f"{name} is not loaded.", hint="`mlxm ps` lists what is.", param="model")

    async def watch(self, name: str) -> AsyncGenerator[ModelStatus]:
        """How a model stands now and after each change, until nothing is under way; NotFound."""
        while True:
            slot = self._slots.get(name)
            row = self.model(name)
            yield row
            if row.is_settled or slot is None:
                return
            await slot.changed.wait(1.0)

    # ── lives ────────────────────────────────────────────────────────────────────────────────────

    def _record(self, name: str) -> Record:
        return self._records.setdefault(name, Record(name))

    def _slot(self, model: LocalModel) -> Slot:
        if self._is_closed:
            raise _closing()
        slot = self._slots.get(model.name)
        record = self._record(model.name)
        if record.model is not None and record.model.folder != model.folder:
            record.forgive()  # other files, other luck
            if slot is not None:
                self.retire(slot)
                slot = None
        if slot is not None and slot.worker is not None and (death := slot.worker.end) is not None:
            slot = self._bury(slot, death)
        if slot is None:
            record.check(_now_s())
            slot = self.begin(model)
        return slot

    def begin(self, model: LocalModel, delay_s: float = 0.0) -> Slot:
        """A new life of a model, which begins after a while."""
        record = self._record(model.name)
        record.model = model
        slot = self._slots[model.name] = Slot(model, record, next(self._numbers))
        slot.loading = asyncio.create_task(self._bring_up(slot, delay_s), name=f"load {model.name}")
        slot.loading.add_done_callback(_heed)
        self._keeper.start()
        return slot

    async def _bring_up(self, slot: Slot, delay_s: float) -> ModelWorker:
        """From the wish to a worker that answers; whatever fails is remembered, and frees what was reserved."""
        try:
            await asyncio.sleep(delay_s)
            slot.set_state("queued")
            need = await self._parts.estimate(slot.model.folder, slot.record.context)
            share = await self._room.admit(slot, need)
            slot.set_state("loading")
            worker = await self._load(slot, share - need.fixed_bytes, need.cache_bytes)
        except MlxmError as error:
            slot.failure = error
            slot.record.failed(error, _now_s(), self._options)
            await self._drop(slot, "failed")
            raise
        slot.worker = worker
        slot.loaded_s = slot.record.last_used_s = _now_s()
        slot.record.loaded()
        slot.set_state("ready")
        await self._room.settle(slot, _really_taken(worker.loaded, need, share))
        self._watch_over(slot, worker)
        self._parts.launcher.refill(has_spare=self._options.has_spare)
        return worker

    async def _load(self, slot: Slot, kv_bytes: int, cache_bytes: int | None) -> ModelWorker:
        """A worker with the model; one that dies of trying a store for keys and values leaves a note not to."""
        for is_last in (False, True):
            worker = await self._parts.launcher.take(slot.model.name)
            try:
                given = kv_bytes if kv_bytes > 0 else None
                await worker.load(slot.model.folder, slot.report, kv_bytes=given, cache_bytes=cache_bytes)
            except WorkerDied:
                if is_last:
                    raise
            else:
                return worker
        raise _closing()  # not reached

    def _watch_over(self, slot: Slot, worker: ModelWorker) -> None:
        async def watch() -> None:
            death = await worker.ended()
            if self._slots.get(slot.model.name) is slot:
                self._bury(slot, death)

        task = asyncio.create_task(watch(), name=f"watch {slot.model.name}")
        self._watching.add(task)
        task.add_done_callback(self._watching.discard)

    def _bury(self, slot: Slot, death: MlxmError) -> Slot | None:
        """A worker has died: another one is started, unless that has been tried too often."""
        del self._slots[slot.model.name]
        self._leaving[slot] = None
        self._end(slot)
        delay_s = slot.record.died(death, _now_s(), self._options)
        return None if delay_s is None or self._is_closed else self.begin(slot.model, delay_s)

    def retire(self, slot: Slot) -> None:
        """Have a model take nobody in any more, and go with its last request."""
        if self._slots.get(slot.model.name) is slot:
            del self._slots[slot.model.name]
            self._leaving[slot] = None
            slot.when_idle(lambda: self._end(slot))

    def _end(self, slot: Slot) -> None:
        if self._is_closed or self._leaving.get(slot) is not None or slot.gone.is_set():  # close() ends it, or it has
            return
        self._leaving[slot] = asyncio.create_task(self._take_down(slot), name=f"end {slot.model.name}")

    async def _take_down(self, slot: Slot) -> None:
        slot.set_state("unloading")
        try:
            await slot.end()
        finally:
            await self._drop(slot, "unloading")

    async def _drop(self, slot: Slot, state: State) -> None:
        """A slot has come to its end: its memory is free."""
        if self._slots.get(slot.model.name) is slot:
            del self._slots[slot.model.name]
        self._leaving.pop(slot, None)
        await self._room.settle(slot, 0)
        slot.gone.set()
        slot.set_state(state)


def _now_s() -> float:
    return asyncio.get_running_loop().time()


def _heed(task: asyncio.Task[ModelWorker]) -> None:
    """Those who asked for the model are told why it failed; when all have left, asyncio need not complain."""
    if not task.cancelled():
        task.exception()


def _really_taken(loaded: Loaded | None, need: Need, share: int) -> int:
    """What to go on reserving: stores take no more than they can use, and weights may be more than files say."""
    if loaded is None:
        return share
    kept = min(share, need.fixed_bytes + loaded.kv_bytes) if loaded.kv_bytes else share
    return max(kept, loaded.active_bytes)


def _closing() -> Draining:
    return Draining("mlxm is stopping.", hint="Send the request again once it runs.", retry_after_s=1.0)


def _unloading(name: str) -> Draining:
    return Draining(f"{name} is being unloaded.", hint="Send the request again.", retry_after_s=1.0)
