"""The database behind an asyncio face: one writer thread, a few readers, and no statement on the event loop.

In WAL mode readers see the last commit and wait for nobody; synchronous=FULL makes an answered write durable.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Self, TypeVar

from mlxm.errors import StoreError
from mlxm.store import private
from mlxm.store.failures import translated
from mlxm.store.migrations import upgrade
from mlxm.store.writer import Writer

T = TypeVar("T")

_NUM_READERS = 4
_MAX_QUEUED = 1024
_BUSY_TIMEOUT_S = 5.0


class Database:
    """An open database; made by `open`, and closed by `close` or by leaving `async with`."""

    def __init__(self, path: Path, writer: Writer, readers: ThreadPoolExecutor) -> None:
        self.path = path
        self._writer = writer
        self._readers = readers
        self._idle: SimpleQueue[sqlite3.Connection] = SimpleQueue()
        self._closed = False

    @classmethod
    async def open(cls, path: Path, *, max_queued: int = _MAX_QUEUED) -> Self:
        """Open the database at `path`, made when missing and brought up to date; StoreError when it cannot be used."""
        readers = ThreadPoolExecutor(_NUM_READERS, thread_name_prefix="mlxm-store-reader")
        try:
            connection = await asyncio.get_running_loop().run_in_executor(readers, _open, path)
        except BaseException:
            readers.shutdown(wait=False)
            raise
        return cls(path, Writer(connection, path, max_queued=max_queued), readers)

    async def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` on the writing connection and return its value once that is on the disk.

        It shares a transaction with others: it must not begin or end one, may run a second time after a failure that
        was not its own, and is undone alone when it raises. Overloaded when too many writes wait already.
        """
        return await self._writer.submit(work)

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` on a reading connection, on one snapshot of the last commit; it returns values, never cursors."""
        if self._closed:
            raise StoreError(f"The database {self.path} is closed.")
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, work)

    async def close(self) -> None:
        """Finish every queued write and every read, then let go of the files."""
        self._closed = True
        await asyncio.to_thread(self._close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with translated(self.path):
            connection = self._reader()
            try:
                connection.execute("BEGIN")
                return work(connection)
            finally:
                connection.rollback()
                self._idle.put(connection)

    def _reader(self) -> sqlite3.Connection:
        try:
            return self._idle.get_nowait()
        except Empty:
            connection = _connect(self.path)
            connection.execute("PRAGMA query_only = ON")
            return connection

    def _close(self) -> None:
        self._readers.shutdown()
        with suppress(Empty):
            while True:
                self._idle.get_nowait().close()
        self._writer.close()


def _open(path: Path) -> sqlite3.Connection:
    """The writing connection to an up-to-date database; blocks."""
    private.make_folder(path.parent)
    private.make_empty(path)
    with translated(path):
        connection = _connect(path)
        try:
            _prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection


def _prepare(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    # On macOS a plain fsync leaves data in the drive's cache; elsewhere these two change nothing.
    connection.execute("PRAGMA fullfsync = ON")
    connection.execute("PRAGMA checkpoint_fullfsync = ON")
    upgrade(connection)
    connection.execute("PRAGMA foreign_keys = ON")
    # A database that cannot be written is better refused here than at the first request.
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("ROLLBACK")


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
