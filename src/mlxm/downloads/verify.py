"""Whether files hold what the Hub says, and a notebook of those that were found to, so that none is read twice."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable
from pathlib import Path
from threading import Lock

import msgspec

from mlxm.catalog.hub_files import RemoteFile

_CHUNK_BYTES = 4 * 1024 * 1024

Stamp = tuple[int, int, int]


def is_as_said(place: Path, file: RemoteFile, report: Callable[[int], None]) -> bool:
    """Whether the file has the size and the hash that the Hub gives; `report` hears of the bytes read."""
    if place.stat().st_size != file.size_bytes:
        return False
    if file.sha256 is not None:
        return _digest(hashlib.sha256(), place, report) == file.sha256
    if file.blob_id is not None:
        header = b"blob %d\0" % file.size_bytes
        return _digest(hashlib.sha1(header, usedforsecurity=False), place, report) == file.blob_id
    return True


class Notebook:
    """Which contents were verified: by their hash, with the file's size, time and number as they were then."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = Lock()
        self._stamps = self._read()

    def knows(self, place: Path, file: RemoteFile) -> bool:
        """Whether this very file was verified before and has not changed since."""
        said = _hash_of(file)
        return said is not None and self._stamps.get(said) == _stamp(place)

    def add(self, place: Path, file: RemoteFile) -> None:
        """Remember that a file is as the Hub says."""
        said = _hash_of(file)
        if said is None:
            return
        with self._lock:
            self._stamps[said] = _stamp(place)
            draft = self._path.with_name(f"{self._path.name}.{uuid.uuid4().hex[:8]}.tmp")
            draft.write_bytes(msgspec.json.encode(self._stamps))
            draft.replace(self._path)

    def _read(self) -> dict[str, Stamp]:
        """A notebook that cannot be read is an empty one: everything is verified again."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, Stamp])
        except (FileNotFoundError, msgspec.DecodeError):
            return {}


def _hash_of(file: RemoteFile) -> str | None:
    return file.blob_id if file.sha256 is None else file.sha256


def _stamp(place: Path) -> Stamp:
    found = place.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino


def _digest(digest: hashlib._Hash, place: Path, report: Callable[[int], None]) -> str:
    with place.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            report(len(chunk))
    return digest.hexdigest()
