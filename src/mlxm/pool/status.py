"""What a pool shows of itself: the rows of `mlxm ps`, as they travel."""

from __future__ import annotations

from typing import Literal

import msgspec

Level = Literal["normal", "warning", "critical"]
"""How short of memory a machine is."""
State = Literal["waiting", "queued", "loading", "ready", "unloading", "failed", "broken"]
"""Waiting for a restart, queued for memory, …; a broken one has died too often to be started again by itself."""


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A model that is in memory, on its way there or away, or that cannot be had; None is what is not known."""

    model: str
    state: State
    reason: str | None = None
    """What went wrong."""
    code: str | None = None
    """The code of that error."""
    kind: str | None = None
    """The store of its keys and values."""
    pinned: bool = False
    pid: int | None = None
    reserved_bytes: int = 0
    memory_bytes: int | None = None
    """What mlx holds for it, with what it keeps for later."""
    resident_bytes: int | None = None
    cpu_percent: float | None = None
    context: int | None = None
    blocks_used: int | None = None
    blocks_total: int | None = None
    running: int = 0
    waiting: int = 0
    in_use: int = 0
    """Requests that hold it."""
    requests: int = 0
    """Requests since it was first loaded."""
    tokens_per_s: float | None = None
    ttft_p50_s: float | None = None
    uptime_s: float | None = None
    expires_s: float | None = None
    """In how many seconds it goes if nobody uses it."""
    done_bytes: int | None = None
    total_bytes: int | None = None
    """Weights read, and to be read."""

    @property
    def is_settled(self) -> bool:
        """Whether nothing is under way."""
        return self.state in ("ready", "failed", "broken")


class PoolStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The whole pool."""

    budget_bytes: int
    reserved_bytes: int
    others_bytes: int
    """What other processes of this home have reserved."""
    pressure: Level
    models: tuple[ModelStatus, ...]
