"""What earlier looks at model folders concluded, kept in a file so that a list need not read every header again.

It only ever saves time: a damaged file counts as empty, and one that cannot be written is no failure.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Final

import msgspec

import mlxm
from mlxm.catalog.inventory import Inventory
from mlxm.catalog.verdict import Verdict

_FORMAT: Final = 1
"""Goes up whenever the same files are judged differently."""
_MAX_BYTES: Final = 64 * 1024 * 1024


class _Entry(msgspec.Struct, frozen=True):
    fingerprint: str
    verdict: Verdict


class _File(msgspec.Struct, frozen=True):
    version: str
    entries: dict[str, _Entry]


class Memo:
    """Verdicts by folder and by the state of its files; opened, used for one question, and saved."""

    def __init__(self, path: Path, entries: dict[str, _Entry]) -> None:
        self._path = path
        self._entries = entries
        self._changed = False

    @classmethod
    def open(cls, home: Path) -> Memo:
        """What is remembered in the home."""
        path = home / "cache" / "characteristics.json"
        return cls(path, _read(path))

    def recall(self, folder: Path, fingerprint: str) -> Verdict | None:
        """The verdict on that folder, if its files are as they were."""
        entry = self._entries.get(os.fspath(folder))
        return entry.verdict if entry is not None and entry.fingerprint == fingerprint else None

    def keep(self, folder: Path, fingerprint: str, verdict: Verdict) -> None:
        """Remember a verdict."""
        self._entries[os.fspath(folder)] = _Entry(fingerprint, verdict)
        self._changed = True

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


def _read(path: Path) -> dict[str, _Entry]:
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
