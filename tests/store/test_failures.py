from __future__ import annotations

import errno
import sqlite3
from pathlib import Path

import pytest

from mlxm.errors import DiskFull, StoreError, StoreReadOnly
from mlxm.store.failures import store_error, translated


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, DiskFull),
        (errno.EDQUOT, DiskFull),
        (errno.EROFS, StoreReadOnly),
        (errno.EACCES, StoreReadOnly),
        (errno.EPERM, StoreReadOnly),
        (errno.EIO, StoreError),
    ],
)
def test_what_the_system_refuses_names_the_path_and_keeps_the_cause(number: int, kind: type[StoreError]) -> None:
    """Each errno becomes the narrowest error."""
    cause = OSError(number, "told by the system")
    with pytest.raises(StoreError, match="/a/b") as caught, translated(Path("/a/b")):
        raise cause
    assert type(caught.value) is kind
    assert caught.value.__cause__ is cause


@pytest.mark.parametrize(
    ("code", "kind", "says"),
    [
        (sqlite3.SQLITE_FULL, DiskFull, "No space"),
        (sqlite3.SQLITE_READONLY_DIRECTORY, StoreReadOnly, "cannot be written"),
        (sqlite3.SQLITE_CORRUPT_INDEX, StoreError, "damaged"),
        (sqlite3.SQLITE_NOTADB, StoreError, "damaged"),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, StoreError, "locked"),
        (sqlite3.SQLITE_LOCKED, StoreError, "locked"),
        (sqlite3.SQLITE_IOERR_WRITE, StoreError, "told by SQLite"),
        (sqlite3.SQLITE_CANTOPEN, StoreError, "told by SQLite"),
    ],
)
def test_what_sqlite_refuses_names_the_path(tmp_path: Path, code: int, kind: type[StoreError], says: str) -> None:
    """Extended codes count as their primary ones."""
    cause = sqlite3.OperationalError("told by SQLite")
    cause.sqlite_errorcode = code
    error = store_error(cause, tmp_path / "mlxm.db")
    assert type(error) is kind
    assert says in error.message
    assert str(tmp_path / "mlxm.db") in error.message


def test_a_folder_that_is_gone_is_no_full_disk(tmp_path: Path) -> None:
    """An I/O error on a disk that was pulled out is told as one."""
    cause = sqlite3.OperationalError("told by SQLite")
    cause.sqlite_errorcode = sqlite3.SQLITE_IOERR_WRITE
    error = store_error(cause, tmp_path / "gone" / "mlxm.db")
    assert type(error) is StoreError
    assert "told by SQLite" in error.message


def test_what_python_refuses_before_sqlite_is_asked_has_no_code(tmp_path: Path) -> None:
    """A closed connection, for one."""
    connection = sqlite3.connect(":memory:")
    connection.close()
    with pytest.raises(StoreError, match="closed database"), translated(tmp_path / "mlxm.db"):
        connection.execute("SELECT 1")
