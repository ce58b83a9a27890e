"""Which store was found right and fastest for a model on this machine, kept in a file so that nobody asks again.

Trying a store may end the process. So a trial leaves a locked file while it lasts; a file whose lock is free names a
store that did not survive. Such a store is out when the model is loaded next. But a process may also end for reasons
of its own, so the store has a second chance the time after; with a second death it is out for good.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import mlx.core as mx
import msgspec

from mlxm import __version__

_PACKAGES = ("mlx", "mlx-lm")
_DEATHS_FOR_GOOD = 2
KeptT = TypeVar("KeptT")


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What was found; `kind` None when no store over blocks is right for the model."""

    kind: str | None
    why: str
    runs_ahead: bool = False
    is_final: bool = True
    """False when a store was left out that shall have a second chance."""


class Verdicts:
    """The verdict on one model, on disk."""

    def __init__(self, folder: Path, model: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._key = _key(model)
        self._file = folder / f"{self._key}.json"
        self._deaths = folder / f"{self._key}.deaths.json"

    def read(self) -> Verdict | None:
        """The verdict, if there is a final one that can be read."""
        verdict = _read(self._file, Verdict)
        return verdict if verdict is not None and verdict.is_final else None

    def write(self, verdict: Verdict) -> None:
        """Keep a verdict."""
        _replace(self._file, msgspec.json.encode(verdict))

    def fatal_kinds(self) -> dict[str, bool]:
        """The stores to leave out because a process ended in their trial, and whether for good."""
        deaths = self._count_deaths()
        has_paused = _read(self._file, Verdict) is not None
        return {
            kind: number >= _DEATHS_FOR_GOOD
            for kind, number in deaths.items()
            if number >= _DEATHS_FOR_GOOD or not has_paused
        }

    @contextmanager
    def trial(self, kind: str) -> Iterator[None]:
        """Have the name on disk while a store is tried; it goes when the process lives, whatever was found."""
        path = self._folder / f"{self._key}.{os.getpid()}.trying"
        with path.open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(kind.encode())
            file.flush()
            os.fsync(file.fileno())
            try:
                yield
            finally:
                path.unlink()

    def _count_deaths(self) -> dict[str, int]:
        """How many processes each store has ended, those of late included."""
        deaths = _read(self._deaths, dict[str, int])
        deaths = {} if deaths is None else deaths
        left = {path: kind for path in self._folder.glob(f"{self._key}.*.trying") if (kind := _left_behind(path))}
        for kind in left.values():
            deaths[kind] = deaths.get(kind, 0) + 1
        if left:
            _replace(self._deaths, msgspec.json.encode(deaths))
        for path in left:
            path.unlink(missing_ok=True)
        return deaths


def _left_behind(path: Path) -> str | None:
    """The store that was tried by a process which is no more; None while somebody is trying."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file.read().decode(errors="replace")
    except (BlockingIOError, FileNotFoundError):
        return None


def _key(model: Path) -> str:
    """A digest of all that a verdict depends on."""
    digest = hashlib.sha256((model / "config.json").read_bytes())
    versions = [f"{name} {version(name)}" for name in _PACKAGES]
    device = mx.device_info()
    facts = [__version__, *versions, str(mx.default_device()), str(device.get("device_name")), str(os.cpu_count())]
    digest.update("\n".join(facts).encode())
    return digest.hexdigest()[:24]


def _read(path: Path, kind: type[KeptT]) -> KeptT | None:
    """What a file holds; None when there is none, or it was damaged."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (FileNotFoundError, UnicodeDecodeError, msgspec.DecodeError):
        return None


def _replace(path: Path, content: bytes) -> None:
    """Write a file whole and lasting, or leave the one that is there."""
    scratch = path.with_suffix(f"{path.suffix}.{os.getpid()}")
    with scratch.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)
