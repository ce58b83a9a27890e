"""A look at a database without a Database: for commands that read one thing and end.

Nothing is made and nothing brought up to date, and what is not there yet reads as empty.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from mlxm.store.failures import translated

T = TypeVar("T")

DATABASE_NAME = "mlxm.db"
"""What the database is called in a home."""


def look(path: Path, table: str, work: Callable[[sqlite3.Connection], T]) -> T | None:
    """What `work` reads, or None when there is no database or no such table in it. Blocks; raises StoreError."""
    if not path.exists():
        return None
    with translated(path), closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        known = connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (table,))
        return work(connection) if known.fetchone() is not None else None
