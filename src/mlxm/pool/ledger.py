"""What every process of this home has promised its models: one file for the server, `mlxm run` and the library.

A line is a pool: its process, when that started, its own mark, and its bytes. What a process has promised ends with it,
however it ends.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

import msgspec
import psutil

from mlxm.errors import StoreError
from mlxm.store.failures import translated
from mlxm.store.private import make_folder

_MAX_BYTES: Final = 1 << 20
_RETRY_S: Final = 0.01
_MARK_BYTES: Final = 4
_PATIENCE_S: Final = 5.0
_PROC: Final = Path("/proc")
_START_TICKS: Final = 18
"""The place of the start time among the fields of /proc/PID/stat that follow the state."""
_NEW: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class Entry(msgspec.Struct, frozen=True):
    """What one pool has promised; `started` tells its process from a later one with the same pid."""

    pid: int
    started: str
    mark: str
    num_bytes: int


class Ledger(Protocol):
    """Where a process says how much it has promised."""

    async def promise(self, num_bytes: int, budget_bytes: int) -> bool:
        """Promise so much in all, if with what the others have promised that is within the budget."""
        ...

    async def others(self) -> int:
        """What other processes have promised."""
        ...

    async def withdraw(self) -> None:
        """Promise nothing any more."""
        ...


class LedgerFile:
    """The ledger of a home, `run/memory`; raises StoreError when it cannot be written."""

    def __init__(self, home: Path) -> None:
        self._path = home / "run" / "memory"
        self._pid = os.getpid()
        self._started = started_of(self._pid)
        self._mark = secrets.token_hex(_MARK_BYTES)

    async def promise(self, num_bytes: int, budget_bytes: int) -> bool:
        """Promise so much in all; less than before is always granted."""
        with translated(self._path), await self._open() as file:
            entries = _read(file)
            others = [entry for entry in entries if entry.mark != self._mark]
            mine = _sum(entries) - _sum(others)
            is_granted = num_bytes <= mine or num_bytes + _sum(others) <= budget_bytes
            kept = num_bytes if is_granted else mine
            if kept and self._started is not None:
                others.append(Entry(self._pid, self._started, self._mark, kept))
            _write(file, others)
        return is_granted

    async def others(self) -> int:
        """What other living processes have promised."""
        with translated(self._path), await self._open() as file:
            return _sum(entry for entry in _read(file) if entry.mark != self._mark)

    async def withdraw(self) -> None:
        """Promise nothing any more."""
        await self.promise(0, 0)

    async def _open(self) -> _Locked:
        """The file, locked; nobody holds it for longer than it takes to write a few lines."""
        make_folder(self._path.parent.parent)
        make_folder(self._path.parent)
        file = _Locked(self._path)
        try:
            async with asyncio.timeout(_PATIENCE_S):
                while not file.lock():  # noqa: ASYNC110  # nobody tells when another process lets go
                    await asyncio.sleep(_RETRY_S)
        except TimeoutError:
            file.close()
            raise StoreError(f"{self._path} is locked by another process.", hint=f"Remove {self._path}") from None
        except BaseException:
            file.close()
            raise
        return file


class _Locked:
    """An open file that may be locked; its lock goes with it."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, _NEW, 0o600)

    def lock(self) -> bool:
        """Take the lock if nobody has it."""
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        os.close(self.descriptor)

    def __enter__(self) -> int:
        return self.descriptor

    def __exit__(self, *_: object) -> None:
        self.close()


def _sum(entries: Iterable[Entry]) -> int:
    return sum(entry.num_bytes for entry in entries)


def _read(descriptor: int) -> list[Entry]:
    """The entries of those who live; lines that say nothing count as nothing."""
    text = os.pread(descriptor, _MAX_BYTES, 0).decode(errors="replace")
    found = [entry for line in text.splitlines() if (entry := _parse(line)) is not None]
    return [entry for entry in found if entry.started == started_of(entry.pid)]


def _parse(line: str) -> Entry | None:
    with suppress(ValueError):
        pid, started, mark, num_bytes = line.split(" ")
        return Entry(int(pid), started, mark, max(0, int(num_bytes)))
    return None


def _write(descriptor: int, entries: list[Entry]) -> None:
    text = "".join(f"{entry.pid} {entry.started} {entry.mark} {entry.num_bytes}\n" for entry in entries).encode()
    os.pwrite(descriptor, text, 0)
    os.ftruncate(descriptor, len(text))


def started_of(pid: int) -> str | None:
    """When a process started, in a form that no change of the clock touches where the system has one; None: it is gone.

    A zombie computes nothing, and counts as gone.
    """
    try:
        if _PROC.exists():
            state, *fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
            return None if state == "Z" else fields[_START_TICKS]
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.0f}"
    except (OSError, psutil.NoSuchProcess):
        return None


class PrivateLedger:
    """A ledger that nobody else writes to."""

    async def promise(self, num_bytes: int, budget_bytes: int) -> bool:
        """Within the budget, or not."""
        return num_bytes <= budget_bytes

    async def others(self) -> int:
        """There are none."""
        return 0

    async def withdraw(self) -> None:
        """Nothing is kept."""
