from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from mlxm.errors import Conflict, NotFound, StoreError
from mlxm.store.db import Database
from mlxm.store.imports import Imports, read_imports
from mlxm.store.look import look


def test_folders_are_kept_in_the_order_they_came(tmp_path: Path) -> None:
    """Each once, and none in another, until it is removed."""
    path = tmp_path / "mlxm.db"

    async def run() -> None:
        async with await Database.open(path) as db:
            imports = Imports(db)
            await imports.add(Path("/b"))
            await imports.add(Path("/a"))
            assert read_imports(path) == (Path("/b"), Path("/a"))
            with pytest.raises(Conflict, match="/a is imported already"):
                await imports.add(Path("/a"))
            with pytest.raises(Conflict, match="/b/owner/model lies in /b, which is imported already"):
                await imports.add(Path("/b/owner/model"))
            await imports.remove(Path("/b"))
            with pytest.raises(NotFound):
                await imports.remove(Path("/b"))
        assert read_imports(path) == (Path("/a"),)

    asyncio.run(run())


def test_a_look_makes_nothing(tmp_path: Path) -> None:
    """No database, no table: nothing is there, and nothing is there afterwards."""
    path = tmp_path / "mlxm.db"
    assert read_imports(path) == ()
    assert not path.exists()
    sqlite3.connect(path).close()
    path.touch()
    assert read_imports(path) == ()
    assert list(tmp_path.iterdir()) == [path]


def test_a_look_at_what_is_no_database_says_so(tmp_path: Path) -> None:
    """As the store does."""
    path = tmp_path / "mlxm.db"
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(StoreError, match="damaged"):
        look(path, "imports", lambda _: None)


def test_a_look_is_quick() -> None:
    """Who reads one thing waits neither for asyncio nor for what migrates."""
    program = "import sys, mlxm.store.imports; print('asyncio' in sys.modules, 'sqlite_utils' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout == "False False\n"
