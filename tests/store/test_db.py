from __future__ import annotations

import asyncio
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from mlxm.errors import Conflict, DiskFull, InternalError, Overloaded, StoreError, StoreReadOnly
from mlxm.store.db import Database

PATIENCE_S = 20


def sql(statement: str, *values: object) -> Callable[[sqlite3.Connection], list[Any]]:
    """A piece of work for the database that runs one statement."""
    return lambda connection: connection.execute(statement, values).fetchall()


class Gate:
    """A write that stands in the middle of its transaction until it is let go."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()

    def __call__(self, connection: sqlite3.Connection) -> None:
        """The write itself."""
        connection.execute("INSERT INTO kept VALUES (-1)")
        self.entered.set()
        assert self.opened.wait(PATIENCE_S)

    async def close(self, db: Database) -> asyncio.Task[None]:
        """Queue itself, and return when the writer has come to it."""
        task = asyncio.create_task(db.write(self))
        assert await asyncio.to_thread(self.entered.wait, PATIENCE_S)
        return task


def with_table(path: Path, body: Callable[[Database], Coroutine[Any, Any, None]], *, max_queued: int = 1024) -> None:
    """Run `body` on a fresh database with one table."""

    async def main() -> None:
        async with await Database.open(path, max_queued=max_queued) as db:
            await db.write(sql("CREATE TABLE kept (number INTEGER PRIMARY KEY)"))
            await asyncio.wait_for(body(db), PATIENCE_S)

    asyncio.run(main())


async def numbers(db: Database) -> list[int]:
    """All rows."""
    return [number for (number,) in await db.read(sql("SELECT number FROM kept ORDER BY number"))]


async def queue(*writes: Coroutine[Any, Any, Any]) -> list[asyncio.Task[Any]]:
    """Start the writes as tasks, far enough to stand in the queue."""
    tasks = [asyncio.create_task(write) for write in writes]
    await asyncio.sleep(0)
    return tasks


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the database goes: in a home that is not there yet."""
    return tmp_path / "home" / "mlxm.db"


def test_a_new_database_is_for_its_owner_alone(path: Path) -> None:
    """Home, database and the two files of WAL mode let nobody else in."""

    async def body(_db: Database) -> None:
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
        assert modes == {"mlxm.db": 0o600, "mlxm.db-wal": 0o600, "mlxm.db-shm": 0o600}
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700

    with_table(path, body)


def test_an_answered_write_is_synced_to_the_disk(path: Path) -> None:
    """WAL mode syncs at each commit only when synchronous is FULL (2); fullfsync reaches the platter on macOS."""

    async def body(db: Database) -> None:
        assert await db.write(sql("PRAGMA journal_mode")) == [("wal",)]
        assert await db.write(sql("PRAGMA synchronous")) == [(2,)]
        assert await db.write(sql("PRAGMA fullfsync")) == [(1,)]
        assert await db.write(sql("PRAGMA checkpoint_fullfsync")) == [(1,)]
        assert await db.write(sql("PRAGMA foreign_keys")) == [(1,)]

    with_table(path, body)


def test_a_write_returns_what_its_work_returns_and_readers_see_it(path: Path) -> None:
    """The value comes back, and the row is there for the next read."""

    async def body(db: Database) -> None:
        assert await db.write(sql("INSERT INTO kept VALUES (7) RETURNING number")) == [(7,)]
        assert await numbers(db) == [7]

    with_table(path, body)


def test_writes_that_queue_up_share_one_commit(path: Path) -> None:
    """A hundred writes that waited for a slow one cost a single COMMIT."""

    async def body(db: Database) -> None:
        seen: list[str] = []
        await db.write(lambda connection: connection.set_trace_callback(seen.append))
        gate = Gate()
        held = await gate.close(db)
        tasks = await queue(*(db.write(sql("INSERT INTO kept VALUES (?)", number)) for number in range(100)))
        seen.clear()
        gate.opened.set()
        await asyncio.gather(held, *tasks)
        await db.write(lambda connection: connection.set_trace_callback(None))
        assert seen.count("COMMIT") == 2
        assert await numbers(db) == [-1, *range(100)]

    with_table(path, body)


def test_a_write_is_answered_after_the_commit_that_contains_it(path: Path) -> None:
    """When the waiter wakes, another connection sees the row, whatever the size of the group."""

    async def body(db: Database) -> None:
        async def write_and_look(number: int) -> bool:
            await db.write(sql("INSERT INTO kept VALUES (?)", number))
            return number in await numbers(db)

        assert all(await asyncio.gather(*(write_and_look(number) for number in range(200))))

    with_table(path, body)


def test_a_failing_write_fails_alone(path: Path) -> None:
    """Its neighbours in the same transaction are kept, its own first half is undone, its error arrives as it is."""

    async def body(db: Database) -> None:
        def half(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT INTO kept VALUES (50)")
            raise Conflict("No.")

        gate = Gate()
        held = await gate.close(db)
        before, failing, doubled, after = await queue(
            db.write(sql("INSERT INTO kept VALUES (1)")),
            db.write(half),
            db.write(sql("INSERT INTO kept VALUES (-1)")),
            db.write(sql("INSERT INTO kept VALUES (2)")),
        )
        gate.opened.set()
        await asyncio.gather(held, before, after)
        with pytest.raises(Conflict, match=r"^No\.$"):
            await failing
        with pytest.raises(StoreError, match="UNIQUE"):
            await doubled
        assert await numbers(db) == [-1, 1, 2]

    with_table(path, body)


def test_a_write_that_fails_at_commit_fails_alone(path: Path) -> None:
    """A deferred constraint breaks the COMMIT of the whole group; the innocent ones are done again without it."""

    async def body(db: Database) -> None:
        await db.write(sql("CREATE TABLE child (kept INTEGER REFERENCES kept DEFERRABLE INITIALLY DEFERRED)"))
        gate = Gate()
        held = await gate.close(db)
        before, orphan, after = await queue(
            db.write(sql("INSERT INTO kept VALUES (1)")),
            db.write(sql("INSERT INTO child VALUES (99)")),
            db.write(sql("INSERT INTO kept VALUES (2)")),
        )
        gate.opened.set()
        await asyncio.gather(held, before, after)
        with pytest.raises(StoreError, match="FOREIGN KEY"):
            await orphan
        assert await numbers(db) == [-1, 1, 2]

    with_table(path, body)


def test_a_write_that_takes_the_whole_transaction_down_fails_alone(path: Path) -> None:
    """SQLite may undo everything at once; whoever caused that gets the error, the others are done again."""

    async def body(db: Database) -> None:
        gate = Gate()
        held = await gate.close(db)
        before, culprit, after = await queue(
            db.write(sql("INSERT INTO kept VALUES (1)")),
            db.write(sql("INSERT OR ROLLBACK INTO kept VALUES (-1)")),
            db.write(sql("INSERT INTO kept VALUES (2)")),
        )
        gate.opened.set()
        await asyncio.gather(held, before, after)
        with pytest.raises(StoreError, match="UNIQUE"):
            await culprit
        assert await numbers(db) == [-1, 1, 2]

    with_table(path, body)


def test_a_transaction_that_cannot_even_be_undone_is_undone_later(path: Path) -> None:
    """Every write is answered while the disk fails, and works again when it does."""

    async def body(db: Database) -> None:
        is_failing = True

        def fail(operation: int, name: str | None, *_: object) -> int:
            is_over = operation == sqlite3.SQLITE_TRANSACTION and name != "BEGIN"
            return sqlite3.SQLITE_DENY if is_over and is_failing else sqlite3.SQLITE_OK

        def insert(connection: sqlite3.Connection) -> None:
            connection.set_authorizer(fail)
            connection.execute("INSERT INTO kept VALUES (1)")

        for _ in range(2):
            with pytest.raises(StoreError, match="not authorized"):
                await db.write(insert)
        is_failing = False
        await db.write(sql("INSERT INTO kept VALUES (2)"))
        assert await numbers(db) == [2]

    with_table(path, body)


def test_a_write_that_commits_on_its_own_is_told_so(path: Path) -> None:
    """It shares its transaction, so ending that is a bug worth naming."""

    async def body(db: Database) -> None:
        with pytest.raises(InternalError, match="ended the transaction"):
            await db.write(lambda connection: connection.commit())
        assert await numbers(db) == []

    with_table(path, body)


def test_a_write_past_the_end_of_an_iterator_wakes_its_waiter(path: Path) -> None:
    """StopIteration cannot travel in a future; without care the waiter would wait for ever."""

    async def body(db: Database) -> None:
        with pytest.raises(InternalError, match="iterator"):
            await db.write(lambda connection: next(connection.execute("SELECT number FROM kept")))

    with_table(path, body)


def test_readers_do_not_wait_for_a_writer_inside_its_transaction(path: Path) -> None:
    """They see the last commit while the next one is being made."""

    async def body(db: Database) -> None:
        gate = Gate()
        held = await gate.close(db)
        assert await numbers(db) == []
        assert not held.done()
        gate.opened.set()
        await held
        assert await numbers(db) == [-1]

    with_table(path, body)


def test_a_read_sees_one_snapshot(path: Path) -> None:
    """Two statements of one read agree, though a commit lies between them."""

    async def body(db: Database) -> None:
        counted, written = threading.Event(), threading.Event()

        def count_twice(connection: sqlite3.Connection) -> tuple[int, int]:
            (first,) = connection.execute("SELECT count(*) FROM kept").fetchone()
            counted.set()
            assert written.wait(PATIENCE_S)
            (second,) = connection.execute("SELECT count(*) FROM kept").fetchone()
            return first, second

        reading = asyncio.create_task(db.read(count_twice))
        assert await asyncio.to_thread(counted.wait, PATIENCE_S)
        await db.write(sql("INSERT INTO kept VALUES (1)"))
        written.set()
        assert await reading == (0, 0)
        assert await numbers(db) == [1]

    with_table(path, body)


def test_a_reader_cannot_write(path: Path) -> None:
    """All writes go through the writer; a connection that reads refuses them and stays usable."""

    async def body(db: Database) -> None:
        with pytest.raises(StoreReadOnly):
            await db.read(sql("INSERT INTO kept VALUES (1)"))
        assert await numbers(db) == []

    with_table(path, body)


def test_a_full_queue_refuses_at_once(path: Path) -> None:
    """The caller is told to come back, the queued writes are done all the same."""

    async def body(db: Database) -> None:
        gate = Gate()
        held = await gate.close(db)
        tasks = await queue(*(db.write(sql("INSERT INTO kept VALUES (?)", number)) for number in range(4)))
        with pytest.raises(Overloaded, match="4 writes") as caught:
            await db.write(sql("INSERT INTO kept VALUES (9)"))
        assert caught.value.retry_after_s == 1.0
        gate.opened.set()
        await asyncio.gather(held, *tasks)
        assert await numbers(db) == [-1, 0, 1, 2, 3]

    with_table(path, body, max_queued=4)


def test_a_queued_write_is_done_though_its_waiter_is_cancelled(path: Path) -> None:
    """A request that goes away does not take its audit row with it."""

    async def body(db: Database) -> None:
        gate = Gate()
        held = await gate.close(db)
        (task,) = await queue(db.write(sql("INSERT INTO kept VALUES (1)")))
        task.cancel()
        gate.opened.set()
        await held
        with pytest.raises(asyncio.CancelledError):
            await task
        await db.write(sql("INSERT INTO kept VALUES (2)"))
        assert await numbers(db) == [-1, 1, 2]

    with_table(path, body)


def test_close_finishes_what_is_queued_and_refuses_the_rest(path: Path) -> None:
    """Nothing that was accepted is lost by an orderly end, and the WAL is folded back into the database."""

    async def main() -> None:
        db = await Database.open(path)
        await db.write(sql("CREATE TABLE kept (number INTEGER PRIMARY KEY)"))
        gate = Gate()
        held = await gate.close(db)
        tasks = await queue(*(db.write(sql("INSERT INTO kept VALUES (?)", number)) for number in range(50)))
        (closing,) = await queue(db.close())
        gate.opened.set()
        await asyncio.gather(held, closing, *tasks)
        with pytest.raises(StoreError, match="is closed"):
            await db.write(sql("INSERT INTO kept VALUES (99)"))
        with pytest.raises(StoreError, match="is closed"):
            await numbers(db)
        await db.close()

    async def reopened() -> list[int]:
        async with await Database.open(path) as db:
            return await numbers(db)

    asyncio.run(main())
    assert [file.name for file in path.parent.iterdir()] == ["mlxm.db"]
    assert asyncio.run(reopened()) == [-1, *range(50)]


def test_a_waiter_whose_loop_has_ended_does_not_stop_the_writer(path: Path) -> None:
    """The write is done, its answer is nobody's, and the next loop is served."""

    async def leave(gate: Gate) -> Database:
        db = await Database.open(path)
        await db.write(sql("CREATE TABLE kept (number INTEGER PRIMARY KEY)"))
        await gate.close(db)
        return db

    async def come_back(db: Database) -> list[int]:
        await db.write(sql("INSERT INTO kept VALUES (1)"))
        try:
            return await numbers(db)
        finally:
            await db.close()

    gate = Gate()
    db = asyncio.run(leave(gate))
    gate.opened.set()
    assert asyncio.run(come_back(db)) == [-1, 1]


def test_a_full_database_fails_the_write_that_does_not_fit(path: Path) -> None:
    """The error names the file; the neighbours that fit are kept, and so is what was there."""

    async def body(db: Database) -> None:
        await db.write(sql("CREATE TABLE big (content BLOB)"))
        await db.write(lambda connection: connection.execute("PRAGMA max_page_count = 24").fetchall())
        gate = Gate()
        held = await gate.close(db)
        before, big, after = await queue(
            db.write(sql("INSERT INTO kept VALUES (1)")),
            db.write(sql("INSERT INTO big VALUES (zeroblob(1000000))")),
            db.write(sql("INSERT INTO kept VALUES (2)")),
        )
        gate.opened.set()
        await asyncio.gather(held, before, after)
        with pytest.raises(DiskFull, match=str(path)):
            await big
        assert await numbers(db) == [-1, 1, 2]

    with_table(path, body)


def test_a_full_disk_loses_no_answered_write(tmp_path: Path, children: Path, mount_namespace: list[str]) -> None:
    """On a disk of one megabyte: a DiskFull that names the file, reads go on, and freed space is used again."""
    program = f'mount -t tmpfs -o size=1m tmpfs "{tmp_path}" && exec "{sys.executable}" "{children}/fill_disk.py" "$0"'
    done = subprocess.run(
        [*mount_namespace, "sh", "-c", program, str(tmp_path)],
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert (done.stdout.splitlines(), done.stderr) == (
        [f"No space is left on the disk for {tmp_path}/mlxm.db.", "ok"],
        "",
    )


OPEN = """
import asyncio, sys
from pathlib import Path
from mlxm.errors import StoreError
from mlxm.store.db import Database
from mlxm.store.lock import HomeLock

home = Path(sys.argv[1])
try:
    if sys.argv[2] == "lock":
        HomeLock(home).acquire()
    else:
        asyncio.run(Database.open(home / "mlxm.db"))
except StoreError as error:
    print(error.code, error.message)
"""


def test_a_disk_that_is_full_from_the_start_is_named(tmp_path: Path, mount_namespace: list[str]) -> None:
    """There is not even room for an empty database."""
    fill = 'mount -t tmpfs -o size=64k tmpfs "$1" && head -c 64k /dev/zero > "$1/ballast"'
    program = f'{fill} && exec "{sys.executable}" -c "$0" "$1" db'
    done = subprocess.run(
        [*mount_namespace, "sh", "-c", program, OPEN, str(tmp_path)],
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == (f"disk_full No space is left on the disk for {tmp_path}/mlxm.db.\n", "")


@pytest.mark.parametrize(
    ("existing", "what", "named"),
    [(True, "db", "mlxm.db"), (False, "db", "mlxm.db"), (True, "lock", "run"), (False, "lock", "run")],
)
def test_a_read_only_home_is_refused_at_the_start(
    tmp_path: Path, mount_namespace: list[str], *, existing: bool, what: str, named: str
) -> None:
    """Whether or not a database is there: root writes past file modes, so the mount itself is read-only."""

    async def make() -> None:
        await (await Database.open(tmp_path / "mlxm.db")).close()

    if existing:
        asyncio.run(make())
    program = f'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && exec "{sys.executable}" -c "$0" "$1" {what}'
    done = subprocess.run(
        [*mount_namespace, "sh", "-c", program, OPEN, str(tmp_path)],
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == (f"store_read_only {tmp_path}/{named} cannot be written.\n", "")


def test_something_that_is_no_database_is_refused_with_what_to_do(path: Path) -> None:
    """The file is left as it is."""
    path.parent.mkdir()
    path.write_bytes(b"not a database" * 500)
    with pytest.raises(StoreError, match="damaged") as caught:
        asyncio.run(Database.open(path))
    assert str(path) in caught.value.message
    assert caught.value.hint is not None
    assert f"mv {path} " in caught.value.hint
    assert path.read_bytes() == b"not a database" * 500


def test_a_database_that_another_process_keeps_locked_is_busy(path: Path) -> None:
    """The write fails after its patience, and the next one works."""

    async def body(db: Database) -> None:
        await db.write(lambda connection: connection.execute("PRAGMA busy_timeout = 1").fetchall())
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked") as caught:
            await db.write(sql("INSERT INTO kept VALUES (1)"))
        assert caught.value.retry_after_s == 1.0
        other.execute("ROLLBACK")
        other.close()
        await db.write(sql("INSERT INTO kept VALUES (2)"))
        assert await numbers(db) == [2]

    with_table(path, body)
