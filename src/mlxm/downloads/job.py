"""A download as those see it who wait for it: one state that changes, and that anybody may watch at any time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any, Literal

import msgspec

from mlxm.errors import InternalError
from mlxm.frames import Fault

State = Literal["queued", "checking", "downloading", "verifying", "done", "failed", "cancelled"]
OVER: frozenset[State] = frozenset({"done", "failed", "cancelled"})
_WINDOW_S = 8.0


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """A download at one moment; sizes are over all its files, None before they are known."""

    id: str
    name: str
    revision: str
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    state: State = "queued"
    renamed_from: str | None = None
    """The name that was asked for, where the Hub has another one now."""
    commit: str | None = None
    waits_for: str | None = None
    """What it is queued behind, in words."""
    total_bytes: int | None = None
    done_bytes: int = 0
    """Bytes that are here, also from before."""
    num_files: int | None = None
    num_done_files: int = 0
    files: tuple[str, ...] = ()
    """The files that are under way now."""
    verified_bytes: int = 0
    rate_bytes_per_s: float | None = None
    eta_s: float | None = None
    fetched_bytes: int | None = None
    """How much of it had to be fetched; known at the end."""
    path: str | None = None
    """The model's folder, once it is done."""
    error: Fault | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in OVER


def _ignore() -> None:
    """For jobs that nobody collects."""


class Job:
    """One download; everybody who wants the same model watches the same job."""

    def __init__(self, progress: Progress, on_change: Callable[[], None] = _ignore) -> None:
        self._progress = progress
        self._on_change = on_change
        self._changed = asyncio.Event()

    @property
    def id(self) -> str:
        """The same for the same request, in every process."""
        return self._progress.id

    @property
    def progress(self) -> Progress:
        """How it stands now."""
        return self._progress

    async def events(self) -> AsyncGenerator[Progress, None]:
        """How it stands now, then each change until it is over; a slow reader gets the newest and misses the others."""
        seen: Progress | None = None
        while seen is None or not seen.is_over:
            changed = self._changed
            if self._progress is seen:
                await changed.wait()
            seen = self._progress
            yield seen

    async def wait(self) -> Path:
        """The model's folder once it is done; raises what the download failed with, or Cancelled."""
        while not self._progress.is_over:
            await self._changed.wait()
        if self._progress.path is None:
            fault = self._progress.error
            raise InternalError(f"{self._progress.name} was not fetched.") if fault is None else fault.error()
        return Path(self._progress.path)

    def change(self, **fields: Any) -> None:
        """Let everybody see new values; for the job's owner."""
        self._progress = msgspec.structs.replace(self._progress, **fields)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        self._on_change()


class Pace:
    """How fast bytes arrive, over the last seconds."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def rate(self, now_s: float, done_bytes: int) -> float | None:
        """Bytes per second since the oldest sample of the window, None when there is nothing to compare with."""
        if self._samples and done_bytes < self._samples[-1][1]:
            self._samples.clear()  # a file started again
        self._samples.append((now_s, done_bytes))
        while self._samples[0][0] < now_s - _WINDOW_S:
            self._samples.popleft()
        first_s, first_bytes = self._samples[0]
        return None if now_s <= first_s else (done_bytes - first_bytes) / (now_s - first_s)
