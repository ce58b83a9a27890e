"""What a pool is told and what it works with: plain data, and the seams to the outside."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import msgspec

from mlxm.errors import MlxmError
from mlxm.frames import MAX_ROWS, Generate, Loaded, LoadProgress, Stats
from mlxm.pool.budget import Estimator, Need, value_bits_here
from mlxm.pool.ledger import Ledger, PrivateLedger
from mlxm.pool.limit import MemoryLimit
from mlxm.pool.policy import Policy
from mlxm.pool.pressure import Probe, probe_memory
from mlxm.pool.stream import RequestStream
from mlxm.pool.worker import ignore


class LocalModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model on disk; `context_length` None means that its files do not say."""

    name: str
    folder: Path
    context_length: int | None


class PoolOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What people can set, and what tests want otherwise; may be changed while the pool works."""

    memory: MemoryLimit = MemoryLimit()
    max_models: int | None = None
    policy: Policy = "lru"
    keep_alive_s: float | None = None
    """How long a model stays that nobody uses; None: until others need its memory."""
    has_spare: bool = True
    """Whether a worker without a model is kept, so that the next load begins at once."""
    queue_s: float = 60.0
    """How long a model waits for memory."""
    max_queued: int = 256
    """How many requests may wait for models that wait for memory."""
    patience_s: float = 1.0
    """How long it waits before models in use are told to let it have their place."""
    retry_s: float = 1.0
    """After a load that failed no other is tried for so long, and after each further one twice as long."""
    max_retry_s: float = 60.0
    restart_s: float = 0.5
    max_deaths: int = 5
    """After so many deaths within `death_window_s` a model counts as broken."""
    death_window_s: float = 120.0
    tend_s: float = 1.0
    """How often expiry and pressure are looked at."""


class ModelWorker(Protocol):
    """A process that has a model, or will."""

    @property
    def pid(self) -> int:
        """Its process id."""
        ...

    @property
    def end(self) -> MlxmError | None:
        """Why requests cannot be sent to it any more, or None."""
        ...

    @property
    def loaded(self) -> Loaded | None:
        """What it said about its model."""
        ...

    @property
    def stats(self) -> Stats | None:
        """How it said last that it is doing."""
        ...

    async def load(
        self,
        folder: Path,
        /,
        report: Callable[[LoadProgress], None],
        *,
        kv_bytes: int | None,
        cache_bytes: int | None,
    ) -> Loaded:
        """Load its model; when this raises, the worker has been ended."""
        ...

    def generate(self, request: Generate, on_end: Callable[[], None]) -> RequestStream:
        """Send a request."""
        ...

    def shrink(self) -> None:
        """Have it give back memory that it only keeps for later."""
        ...

    async def ended(self) -> MlxmError:
        """Wait until it has ended, in whatever way."""
        ...

    async def stop(self) -> None:
        """Let it leave; what it still runs fails with Draining."""
        ...


class Launcher(Protocol):
    """Starts workers, each a process of its own, or the first one of a group that runs one model together."""

    async def take(self, name: str) -> ModelWorker:
        """A worker for the model `name`: a spare one, or a new one; raises WorkerDied or ProtocolMismatch."""
        ...

    def refill(self, *, has_spare: bool) -> None:
        """See to it that there is a spare worker, or none."""
        ...

    async def close(self) -> None:
        """End the spare worker."""
        ...


Estimate = Callable[[Path, "int | None"], Awaitable[Need]]
"""What the model in a folder needs; the second argument is a context that was asked for."""


async def estimate_files(folder: Path, context: int | None, *, max_rows: int = MAX_ROWS) -> Need:
    """What a model's files say, read in a thread."""
    estimator = Estimator(max_rows=max_rows, value_bits=value_bits_here())
    return await asyncio.to_thread(estimator, folder, context)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a pool works with."""

    launcher: Launcher
    ledger: Ledger = field(default_factory=PrivateLedger)
    estimate: Estimate = estimate_files
    probe: Probe = probe_memory
    on_trouble: Callable[[MlxmError], None] = ignore
    """Told of what goes wrong where nobody waits for it."""
