"""Folders of the user's own that hold a model: known by their path, and never copied or changed."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import TYPE_CHECKING

from mlxm.errors import Conflict, NotFound
from mlxm.store.look import look

if TYPE_CHECKING:
    from mlxm.store.db import Database  # who only reads the list need not wait for asyncio

TABLE = "imports"
_HINT_INSIDE = "`mlxm ls` shows what is found there; `mlxm rm` forgets it."


class Imports:
    """Reads and writes the list of imported folders."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def add(self, folder: Path) -> None:
        """Know `folder` from now on; Conflict when it is known already, or lies in a folder that is."""

        def insert(connection: sqlite3.Connection) -> None:
            for known in _select(connection):
                if folder == known:
                    raise Conflict(f"{folder} is imported already.", hint="`mlxm ls` shows it.")
                if folder.is_relative_to(known):
                    raise Conflict(f"{folder} lies in {known}, which is imported already.", hint=_HINT_INSIDE)
            connection.execute("INSERT INTO imports (path, added_at) VALUES (?, ?)", (str(folder), time.time()))

        await self._db.write(insert)

    async def remove(self, folder: Path) -> None:
        """Forget `folder`, which itself stays as it is; NotFound when it was not known."""

        def delete(connection: sqlite3.Connection) -> int:
            return connection.execute("DELETE FROM imports WHERE path = ?", (str(folder),)).rowcount

        if not await self._db.write(delete):
            raise NotFound(f"{folder} is not imported.")


def read_imports(database: Path) -> tuple[Path, ...]:
    """Every imported folder, the oldest first. Blocks."""
    found = look(database, TABLE, _select)
    return () if found is None else found


def _select(connection: sqlite3.Connection) -> tuple[Path, ...]:
    return tuple(Path(path) for (path,) in connection.execute("SELECT path FROM imports ORDER BY added_at, path"))
