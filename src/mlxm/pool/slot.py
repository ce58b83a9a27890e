"""One life of a model: from the decision to load it to the end of its worker; and how many requests hold it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import psutil

from mlxm.errors import InternalError, MlxmError
from mlxm.frames import LoadProgress
from mlxm.pool.options import LocalModel, ModelWorker, PoolOptions
from mlxm.pool.policy import Tenant
from mlxm.pool.record import Record
from mlxm.pool.status import ModelStatus, State


class Signal:
    """Something has changed: everybody who waits is woken, and looks for himself."""

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[None]] = set()

    def fire(self) -> None:
        """Wake all who wait."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    async def wait(self, timeout_s: float | None = None) -> None:
        """Wait for the next change, or so long."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await asyncio.wait([waiter], timeout=timeout_s)
        finally:
            self._waiters.discard(waiter)


class Slot:
    """A model's place; whoever asks for the model holds it, from before it is loaded until the worker is done."""

    def __init__(self, model: LocalModel, record: Record, number: int) -> None:
        self.model = model
        self.record = record
        self.number = number
        self.state: State = "waiting"
        self.worker: ModelWorker | None = None
        self.loading: asyncio.Task[ModelWorker] | None = None
        self.reserved_bytes = 0
        self.num_leases = 0
        self.loaded_s: float | None = None
        self.gone = asyncio.Event()
        self.changed = Signal()
        self.progress: LoadProgress | None = None
        self.failure: MlxmError | None = None
        self._process: psutil.Process | None = None
        self._on_idle: Callable[[], None] | None = None

    @property
    def used_bytes(self) -> int:
        """What counts against the budget: what was reserved, or what is really used if that is more."""
        return max(self.reserved_bytes, self.measured_bytes or 0) if self.reserved_bytes else 0

    @property
    def measured_bytes(self) -> int | None:
        """What mlx said last that it holds."""
        stats = None if self.worker is None else self.worker.stats
        if stats is None or stats.active_bytes is None:
            return None
        return stats.active_bytes + (0 if stats.cache_bytes is None else stats.cache_bytes)

    def present(self) -> ModelWorker:
        """Its worker, which is there already."""
        if self.worker is None:
            raise InternalError(f"{self.model.name} has no worker.")
        return self.worker

    @property
    def is_idle(self) -> bool:
        """Whether it is loaded and nobody holds it."""
        return self.state == "ready" and self.num_leases == 0

    def set_state(self, state: State) -> None:
        """Change, and tell those who watch."""
        self.state = state
        self.changed.fire()

    def hold(self, now_s: float) -> None:
        """Take a lease."""
        self.num_leases += 1
        self.record.used(now_s)

    def release(self) -> None:
        """Give a lease back."""
        self.num_leases -= 1
        self.record.last_used_s = asyncio.get_running_loop().time()
        self.changed.fire()
        self._tell_idle()

    def when_idle(self, tell: Callable[[], None]) -> None:
        """Call `tell` once nobody holds it, which may be now."""
        self._on_idle = tell
        self._tell_idle()

    def _tell_idle(self) -> None:
        if self.num_leases == 0 and self._on_idle is not None:
            tell, self._on_idle = self._on_idle, None
            tell()

    def report(self, progress: LoadProgress) -> None:
        """Note how far the load is."""
        self.progress = progress
        self.changed.fire()

    def tenant(self, options: PoolOptions) -> Tenant:
        """Itself as a policy sees it."""
        keep_s = self.record.keep_alive_s(options)
        return Tenant(
            key=self.number,
            num_bytes=self.used_bytes,
            last_used_s=self.record.last_used_s,
            num_uses=self.record.num_uses,
            expires_s=None if keep_s is None else self.record.last_used_s + keep_s,
        )

    async def end(self) -> None:
        """End its worker, loaded or not."""
        if self.loading is not None:
            self.loading.cancel()
            await asyncio.wait([self.loading])
        if self.worker is not None:
            await self.worker.stop()

    def status(self, options: PoolOptions, now_s: float) -> ModelStatus:
        """How it is doing."""
        worker = self.worker
        facts = None if worker is None else worker.loaded
        stats = None if worker is None else worker.stats
        resident, cpu = self._usage()
        keep_s = self.record.keep_alive_s(options)
        expires_s = None if keep_s is None or not self.is_idle else self.record.last_used_s + keep_s - now_s
        return ModelStatus(
            model=self.model.name,
            state=self.state,
            reason=None if self.failure is None else self.failure.message,
            code=None if self.failure is None else self.failure.code,
            kind=None if facts is None else facts.kind,
            pinned=self.record.stays,
            pid=None if worker is None else worker.pid,
            reserved_bytes=self.reserved_bytes,
            memory_bytes=self.measured_bytes,
            resident_bytes=resident,
            cpu_percent=cpu,
            context=None if facts is None else facts.context_length,
            blocks_used=None if stats is None else stats.blocks_used,
            blocks_total=None if stats is None else stats.blocks_total,
            running=0 if stats is None else stats.running,
            waiting=0 if stats is None else stats.waiting,
            in_use=self.num_leases,
            requests=self.record.num_uses,
            tokens_per_s=None if stats is None else stats.tokens_per_s,
            ttft_p50_s=self.record.ttft_p50_s,
            uptime_s=None if self.loaded_s is None else now_s - self.loaded_s,
            expires_s=None if expires_s is None else max(0.0, expires_s),
            done_bytes=None if self.progress is None else self.progress.done_bytes,
            total_bytes=None if self.progress is None else self.progress.total_bytes,
        )

    def _usage(self) -> tuple[int | None, float | None]:
        """Its process's resident bytes, and its share of a core since this was last asked."""
        if self.worker is None:
            return None, None
        try:
            if self._process is None or self._process.pid != self.worker.pid:
                self._process = psutil.Process(self.worker.pid)
            return self._process.memory_info().rss, self._process.cpu_percent(None)
        except psutil.Error:
            return None, None
