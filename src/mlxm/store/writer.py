"""The one thread that writes: whatever has queued up while it was busy goes into its next transaction.

One sync to disk then serves many writes, and a write is answered only after the COMMIT that contains it.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

from mlxm.errors import InternalError, Overloaded, StoreError
from mlxm.store.failures import store_error

T = TypeVar("T")


class _TransactionLostError(Exception):
    """The whole transaction is gone, not just the work of one write."""


class _Job(Generic[T]):
    """One queued write; as a context manager it keeps what the write raises for the one who waits for it."""

    def __init__(self, write: Callable[[sqlite3.Connection], T]) -> None:
        self.write = write
        self.loop = asyncio.get_running_loop()
        self.answer: asyncio.Future[T] = self.loop.create_future()
        self.value: T
        self.error: Exception | None = None

    def __enter__(self) -> None:
        self.error = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if isinstance(error, StopIteration):
            # A future refuses to carry this one, and its waiter would never wake.
            self.error = InternalError("A write to the database ran past the end of an iterator.")
        elif isinstance(error, Exception):
            self.error = error
        return self.error is not None

    def settle(self) -> None:
        """Wake the waiter, unless it has gone; runs in the waiter's event loop."""
        if self.answer.done():
            return
        if self.error is not None:
            self.answer.set_exception(self.error)
        else:
            self.answer.set_result(self.value)


class Writer:
    """Owns the writing connection from start to close."""

    def __init__(self, connection: sqlite3.Connection, path: Path, *, max_queued: int) -> None:
        self._connection = connection
        self._path = path
        self._max_queued = max_queued
        self._queued: deque[_Job[Any]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        # A daemon, so that a program which ends without closing is not held back by an idle thread.
        self._thread = threading.Thread(target=self._run, name="mlxm-store-writer", daemon=True)
        self._thread.start()

    def submit(self, write: Callable[[sqlite3.Connection], T]) -> asyncio.Future[T]:
        """Queue a write and return its future; once queued it is done, even when nobody waits any more."""
        job = _Job(write)
        with self._changed:
            if self._closing:
                raise StoreError(f"The database {self._path} is closed.")
            if len(self._queued) >= self._max_queued:
                raise Overloaded(
                    f"{self._max_queued} writes wait for the database {self._path} already.",
                    hint="The disk is too slow for this load: send less, or put MLXM_HOME on a faster one.",
                    retry_after_s=1.0,
                )
            self._queued.append(job)
            self._changed.notify()
        return job.answer

    def close(self) -> None:
        """Take no more writes, do those that are queued, and close the connection; blocks until that is done."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while jobs := self._take():
            self._commit(jobs)
            _answer(jobs)
        self._connection.close()

    def _take(self) -> list[_Job[Any]]:
        """Everything that is queued, waiting for at least one job; empty only when the last one is done."""
        with self._changed:
            self._changed.wait_for(lambda: self._queued or self._closing)
            jobs = list(self._queued)
            self._queued.clear()
        return jobs

    def _commit(self, jobs: Sequence[_Job[Any]]) -> None:
        """Do `jobs` in one transaction, or each in its own when one of them made the whole transaction fail."""
        try:
            self._roll_back()  # what an earlier failure has left open
            self._connection.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            self._fail(jobs, error)
            return
        try:
            for job in jobs:
                self._do(job)
            self._connection.execute("COMMIT")
        except (sqlite3.Error, _TransactionLostError) as error:
            with suppress(sqlite3.Error):  # a disk that fails now may fail this too; the next commit tries again
                self._roll_back()
            if len(jobs) > 1:
                for job in jobs:
                    self._commit([job])
            elif isinstance(error, sqlite3.Error):
                self._fail(jobs, error)

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def _do(self, job: _Job[Any]) -> None:
        """Run one write inside the open transaction, and undo its work alone when it fails."""
        self._connection.execute("SAVEPOINT job")
        with job:
            job.value = job.write(self._connection)
        if isinstance(job.error, sqlite3.Error):
            self._fail([job], job.error)
        if not self._connection.in_transaction:
            if job.error is None:
                job.error = InternalError("A write to the database ended the transaction that it shares with others.")
            raise _TransactionLostError
        if job.error is not None:
            self._connection.execute("ROLLBACK TO job")
        self._connection.execute("RELEASE job")

    def _fail(self, jobs: Sequence[_Job[Any]], cause: sqlite3.Error) -> None:
        for job in jobs:
            job.error = store_error(cause, self._path)
            job.error.__cause__ = cause


def _answer(jobs: Sequence[_Job[Any]]) -> None:
    """Settle all jobs of one event loop in one call into it."""
    for loop in {job.loop for job in jobs}:
        mine = [job for job in jobs if job.loop is loop]
        with suppress(RuntimeError):  # the loop has closed: nobody waits any more
            loop.call_soon_threadsafe(_settle, mine)


def _settle(jobs: Sequence[_Job[Any]]) -> None:
    for job in jobs:
        job.settle()
