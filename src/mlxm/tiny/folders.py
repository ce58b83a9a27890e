"""Folders that are either whole or absent: built beside their place, sealed with checksums, and renamed.

Two processes may want the same folder at once; a lock that dies with its process lets one of them build it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from mlxm.errors import DiskFull, StoreError, StoreReadOnly

SEAL: Final = "mlxm-seal.json"
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_READ_ONLY: Final = (errno.EROFS, errno.EACCES, errno.EPERM)


def is_whole(folder: Path) -> bool:
    """Whether every file that the folder was sealed with is there with the same content."""
    try:
        sealed = msgspec.json.decode((folder / SEAL).read_bytes(), type=dict[str, str])
        return bool(sealed) and all(_digest(folder / name) == digest for name, digest in sealed.items())
    except (OSError, msgspec.DecodeError):
        return False


@contextmanager
def workshop(parent: Path) -> Iterator[Path]:
    """A scratch folder inside `parent` for one builder at a time; what is left in it afterwards is thrown away.

    Makes `parent` and what is missing above it for the user alone, since MLXM_HOME may be among it. Waits for another
    process that builds in the same parent. Raises StoreReadOnly, DiskFull or StoreError when the file system refuses.
    """
    with _translated(parent):
        for missing in reversed([folder for folder in (parent, *parent.parents) if not folder.exists()]):
            missing.mkdir(mode=0o700, exist_ok=True)
        with (parent / ".building.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for leftover in parent.glob(".building-*"):
                shutil.rmtree(leftover)
            scratch = Path(tempfile.mkdtemp(prefix=".building-", dir=parent))
            try:
                yield scratch
            finally:
                shutil.rmtree(scratch)


def seal_and_place(built: Path, target: Path) -> None:
    """Record the checksums of what is in `built` and put it in the place of `target`; call it inside a workshop."""
    digests = {path.name: _digest(path) for path in sorted(built.iterdir())}
    (built / SEAL).write_text(json.dumps(digests, indent=1) + "\n")
    if os.path.lexists(target):
        target.rename(built.with_name(f"{built.name}.replaced"))
    built.rename(target)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _translated(parent: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = f"Cannot build a model in {parent}: {os.strerror(error.errno or errno.EIO)}."
        if error.errno in _FULL:
            raise DiskFull(what, hint="Free some space there, or put MLXM_HOME on another disk.") from error
        if error.errno in _READ_ONLY:
            raise StoreReadOnly(what, hint="Make the folder writable, or set MLXM_HOME to one that is.") from error
        raise StoreError(what, hint=f"Check that {parent} is a folder on a working disk.") from error
