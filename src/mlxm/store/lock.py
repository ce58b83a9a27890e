"""One server per home: a lock that the system takes back when its holder dies, however it dies.

The file names the holder for people; the lock on it is what counts, so the file is never removed.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from mlxm.errors import AlreadyRunning
from mlxm.store import private
from mlxm.store.failures import translated

_PID_BYTES = 32
# A holder writes its pid right after it got the lock, and a look at the lock holds it for an instant.
_SETTLE_S = 1.0
_POLL_S = 0.02


class HomeStatus(msgspec.Struct, frozen=True):
    """Whether a server uses a home, and its pid where that is known."""

    held: bool
    pid: int | None = None


class HomeLock:
    """The right to be the one server of a home; taken by `acquire` or `with`, freed with the process at the latest."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock, making home and run folder when needed; AlreadyRunning when another process has it."""
        path = _lock_path(self._home)
        private.make_folder(self._home)
        private.make_folder(path.parent)
        with translated(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                self._claim(descriptor)
            except BaseException:
                os.close(descriptor)
                raise
        self._descriptor = descriptor

    def _claim(self, descriptor: int) -> None:
        if not _lock(descriptor, fcntl.LOCK_EX):
            raise _already_running(self._home, _read_pid(descriptor))
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Free the lock; harmless when it is not held."""
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def home_status(home: Path) -> HomeStatus:
    """Whether and by which process `home` is held; looks only, and makes nothing."""
    path = _lock_path(home)
    with translated(path):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return HomeStatus(held=False)
        try:
            if _lock(descriptor, fcntl.LOCK_SH):
                return HomeStatus(held=False)
            return HomeStatus(held=True, pid=_read_pid(descriptor))
        finally:
            os.close(descriptor)


def _lock_path(home: Path) -> Path:
    return home / "run" / "server.lock"


def _lock(descriptor: int, mode: int) -> bool:
    """Whether the lock could be had; False only once a living holder is named, or after a second without a name."""
    deadline = time.monotonic() + _SETTLE_S
    while True:
        try:
            fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            if _is_alive(_read_pid(descriptor)) or time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        else:
            return True


def _read_pid(descriptor: int) -> int | None:
    text = os.pread(descriptor, _PID_BYTES, 0).strip()
    return int(text) if text.isdigit() else None


def _is_alive(pid: int | None) -> bool:
    if pid is None:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        return True
    return True


def _already_running(home: Path, pid: int | None) -> AlreadyRunning:
    holder = "Another process" if pid is None else f"Another server (pid {pid})"
    stop = "Stop it" if pid is None else f"Stop it with: kill {pid}"
    return AlreadyRunning(
        f"{holder} uses {home} already.",
        hint=f"{stop}, or start this one with another MLXM_HOME.",
    )
