"""The border to SQLite and the file system: what they raise becomes an MlxmError that names the path.

Nothing above the store catches sqlite3.Error or OSError for a file in the home.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlxm.errors import DiskFull, StoreError, StoreReadOnly

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Raise what SQLite or the system says about `path` as a StoreError of the fitting kind."""
    try:
        yield
    except sqlite3.Error as error:
        raise store_error(error, path) from error
    except OSError as error:
        raise _file_error(error, path) from error


def store_error(error: sqlite3.Error, path: Path) -> StoreError:
    """What a failed statement means for the database at `path`."""
    code = _primary_code(error)
    if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and _no_space(path)):
        return _full(path)
    if code == sqlite3.SQLITE_READONLY or (code == sqlite3.SQLITE_CANTOPEN and _write_protected(path)):
        return _read_only(path)
    if code in _DAMAGED:
        return StoreError(
            f"The database {path} is damaged: {error}.",
            hint=f"Put a backup in its place, or move it away to start with an empty one: mv {path} {path}.damaged",
        )
    if code in _BUSY:
        return StoreError(
            f"Another process keeps the database {path} locked.",
            hint="Try again when it has finished.",
            retry_after_s=1.0,
        )
    return StoreError(f"The database {path} could not be used: {error}.")


def _primary_code(error: sqlite3.Error) -> int:
    try:
        return error.sqlite_errorcode & 0xFF
    except AttributeError:  # raised by Python's own checks, before SQLite was asked
        return sqlite3.SQLITE_ERROR


def _file_error(error: OSError, path: Path) -> StoreError:
    if error.errno in _FULL:
        return _full(path)
    if error.errno in _READ_ONLY:
        return _read_only(path)
    return StoreError(f"{path} could not be used: {error.strerror}.")


def _full(path: Path) -> DiskFull:
    return DiskFull(
        f"No space is left on the disk for {path}.",
        hint="Free some space there, or put MLXM_HOME on another disk.",
    )


def _read_only(path: Path) -> StoreReadOnly:
    return StoreReadOnly(
        f"{path} cannot be written.",
        hint="Make the folder writable for this user, or set MLXM_HOME to one that is.",
    )


def _no_space(path: Path) -> bool:
    """SQLite reports a full disk as a plain I/O error when it could not grow its shared-memory file."""
    try:
        return os.statvfs(path.parent).f_bavail == 0
    except OSError:  # the folder itself is gone, as when its disk is pulled out
        return False


def _write_protected(path: Path) -> bool:
    return path.parent.is_dir() and not os.access(path.parent, os.W_OK)
