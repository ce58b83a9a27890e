"""What earlier looks at model folders concluded, kept in a file so that a list need not read every header again.

It only ever saves time: a damaged file counts as empty, and one that cannot be written is no failure.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from typing import Final

import msgspec

import mlxm
from mlxm.catalog.inventory import Inventory
from mlxm.catalog.verdict import Verdict

_FORMAT: Final = 1
"""Goes up whenever the same files are judged differently."""
_SLACK_S: Final = 1.0
"""File systems do not record times more exactly than that."""
_MAX_BYTES: Final = 64 * 1024 * 1024


class Remembered(msgspec.Struct, frozen=True):
    """A verdict, when the weights had been used before that look, and until when the look itself was using them."""

    fingerprint: str
    verdict: Verdict
    used_s: float | None
    looked_s: float

    def last_used(self, seen_s: float | None) -> float | None:
        """The last use by others, given what the file system says now."""
        return self.used_s if seen_s is None or seen_s <= self.looked_s else seen_s


class _File(msgspec.Struct, frozen=True):
    version: str
    entries: dict[str, Remembered]


class Memo:
    """Verdicts by folder and by the state of its files; opened, used for one question, and saved."""

    def __init__(self, path: Path, entries: dict[str, Remembered]) -> None:
        self._path = path
        self._entries = entries
        self._changed = False

    @classmethod
    def open(cls, home: Path) -> Memo:
        """What is remembered in the home."""
        path = home / "cache" / "characteristics.json"
        return cls(path, _read(path))

    def recall(self, folder: Path, fingerprint: str) -> Remembered | None:
        """What is remembered of that folder, if its files are as they were."""
        found = self._entries.get(os.fspath(folder))
        return found if found is not None and found.fingerprint == fingerprint else None

    def keep(self, folder: Path, fingerprint: str, verdict: Verdict, used_s: float | None) -> Remembered:
        """Remember a verdict that was reached just now, on weights that had last been used at `used_s`."""
        remembered = Remembered(fingerprint, verdict, used_s, time.time() + _SLACK_S)
        self._entries[os.fspath(folder)] = remembered
        self._changed = True
        return remembered

    def forget_others(self, folders: Collection[Path]) -> None:
        """Drop what is remembered of all but these folders."""
        known = {os.fspath(folder) for folder in folders}
        gone = self._entries.keys() - known
        for folder in gone:
            del self._entries[folder]
        self._changed = self._changed or bool(gone)

    def save(self) -> None:
        """Write what has changed, whole or not at all."""
        if not self._changed:
            return
        # A home that cannot be written must not keep anyone from seeing their models.
        with contextlib.suppress(OSError, msgspec.EncodeError, UnicodeError):
            _write(self._path, msgspec.json.encode(_File(_version(), self._entries)))
            self._changed = False


def fingerprint_of(inventory: Inventory, *, name: str, num_unfinished: int) -> str:
    """A digest that changes when a verdict may."""
    seen = repr((name, num_unfinished, inventory.fingerprint, inventory.dangling, inventory.unreadable))
    return hashlib.sha256(seen.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _version() -> str:
    return f"{mlxm.__version__}/{_FORMAT}"


def _read(path: Path) -> dict[str, Remembered]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            return {}
        found = msgspec.json.decode(path.read_bytes(), type=_File)
    except (OSError, ValueError, RecursionError):
        return {}
    return found.entries if found.version == _version() else {}


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, scratch = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        Path(scratch).replace(path)
    except BaseException:
        Path(scratch).unlink()
        raise
