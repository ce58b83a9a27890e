from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mlxm.errors import StoreError
from mlxm.store.migrations import MIGRATIONS, applied, upgrade

if TYPE_CHECKING:
    import sqlite_utils

GOLDEN_SCHEMAS = Path(__file__).with_name("schemas.sql")
PATIENCE_S = 60
VALUES = {"TEXT": "text", "INTEGER": 7, "REAL": 1.5, "BLOB": b"bytes"}

Schema = frozenset[tuple[str, str, str]]


def opened(path: Path) -> sqlite3.Connection:
    """A connection as the database makes them."""
    return sqlite3.connect(path, isolation_level=None)


def schema(connection: sqlite3.Connection) -> Schema:
    """Everything that defines tables and indexes."""
    return frozenset(connection.execute("SELECT type, name, coalesce(sql, '') FROM sqlite_master").fetchall())


def tables(connection: sqlite3.Connection) -> list[str]:
    """Our tables."""
    rows = connection.execute(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE '%sqlite\\_%' ESCAPE '\\'"
    )
    return [name for (name,) in rows]


def fill(connection: sqlite3.Connection) -> None:
    """Put a row with a value in every column into every table."""
    for table in tables(connection):
        values = [VALUES[column[2]] for column in connection.execute(f"PRAGMA table_info({table})")]
        marks = ", ".join("?" * len(values))
        connection.execute(f"INSERT INTO {table} VALUES ({marks})", values)  # noqa: S608 - the schema names the table


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """An empty database."""
    with closing(opened(tmp_path / "mlxm.db")) as connection:
        yield connection


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> list[Schema]:
    """The schema after each number of migrations, from none to all."""
    folder = tmp_path_factory.mktemp("versions")
    found = []
    for count in range(len(MIGRATIONS) + 1):
        with closing(opened(folder / f"{count}.db")) as connection:
            upgrade(connection, MIGRATIONS[:count])
            found.append(schema(connection))
    return found


def test_migrations_are_numbered_in_order() -> None:
    """The list only grows at its end, and the numbers show it."""
    assert [migration.__name__[:5] for migration in MIGRATIONS] == [f"m{n:03}_" for n in range(1, len(MIGRATIONS) + 1)]


def test_no_old_migration_is_ever_edited(versions: list[Schema]) -> None:
    """Databases with the old outcome are out there: the kept schema of each step grows at its end alone."""
    steps = []
    for migration, before, after in zip(MIGRATIONS, versions, versions[1:], strict=False):
        news = sorted(sql for _, name, sql in after - before if "sqlite" not in name)
        steps.append("\n".join([f"-- {migration.__name__}", *news]))
    assert "\n\n".join(steps) + "\n" == GOLDEN_SCHEMAS.read_text(encoding="utf-8")


@pytest.mark.parametrize("earlier", range(len(MIGRATIONS)))
def test_every_earlier_version_becomes_the_newest_and_keeps_its_rows(
    connection: sqlite3.Connection, versions: list[Schema], earlier: int
) -> None:
    """A database of long ago ends up with the schema of a new one."""
    upgrade(connection, MIGRATIONS[:earlier])
    fill(connection)
    before = tables(connection)
    upgrade(connection)
    assert schema(connection) == versions[-1]
    assert applied(connection) == {migration.__name__ for migration in MIGRATIONS}
    for table in set(before).intersection(tables(connection)):
        counted = connection.execute(f"SELECT count(*) FROM {table}")  # noqa: S608 - the schema names the table
        assert counted.fetchone() == (1,), table


def test_the_audit_has_no_column_for_content(connection: sqlite3.Connection) -> None:
    """What was asked and answered is nobody's business."""
    upgrade(connection)
    columns = [column[1] for column in connection.execute("PRAGMA table_info(audit)")]
    assert columns == [
        "request_id", "started_at", "endpoint", "dialect", "model", "status", "error_code", "duration_s", "ttft_s",
        "tokens_in", "tokens_out", "tokens_cached",
    ]  # fmt: skip


def test_a_failing_migration_leaves_the_version_before_it(
    connection: sqlite3.Connection, versions: list[Schema]
) -> None:
    """Its first half is undone, the steps before it stay, and the connection is free for more."""

    def m003_broken(db: sqlite_utils.Database) -> None:
        db.execute("CREATE TABLE half (id INTEGER)")
        db.execute("CREATE TABLE audit (id INTEGER)")

    with pytest.raises(sqlite3.OperationalError, match="audit already exists"):
        upgrade(connection, [*MIGRATIONS, m003_broken])
    assert schema(connection) == versions[-1]
    assert not connection.in_transaction


def test_a_database_of_a_newer_mlxm_is_refused(connection: sqlite3.Connection) -> None:
    """An older program must not write into a schema that it does not know."""
    upgrade(connection)
    with pytest.raises(StoreError, match=rf"newer mlxm.*{MIGRATIONS[-1].__name__}") as caught:
        upgrade(connection, MIGRATIONS[:-1])
    assert caught.value.hint is not None


def test_two_that_migrate_at_once_both_succeed(connection: sqlite3.Connection, tmp_path: Path) -> None:
    """Whoever comes while the other is at it waits, finds the step done and goes on."""
    connection.execute("PRAGMA journal_mode = WAL")
    knocked, came_in = threading.Event(), threading.Event()

    def m001_slow(db: sqlite_utils.Database) -> None:
        db.execute("CREATE TABLE slow (id INTEGER)")
        second.start()
        assert knocked.wait(PATIENCE_S)
        assert not came_in.wait(0.2), "the second one worked beside the first"

    def knock(statement: str) -> None:
        if knocked.is_set():
            came_in.set()
        elif statement.startswith("BEGIN"):
            knocked.set()

    def migrate_too() -> None:
        with closing(sqlite3.connect(tmp_path / "mlxm.db", isolation_level=None)) as other:
            assert applied(other) == set()
            other.set_trace_callback(knock)
            upgrade(other, [m001_slow])
            finished.append(applied(other))

    finished: list[set[str]] = []
    second = threading.Thread(target=migrate_too)
    upgrade(connection, [m001_slow])
    second.join(PATIENCE_S)
    assert finished == [{"m001_slow"}]


@pytest.mark.parametrize("earlier", sorted({0, len(MIGRATIONS) - 1}))
def test_a_kill_inside_a_migration_leaves_one_version_or_another(
    tmp_path: Path, children: Path, unmeasured: dict[str, str], versions: list[Schema], earlier: int
) -> None:
    """Killed with -9 before each statement in turn: never something between, and the next start completes it."""
    command = [sys.executable, children / "migrate_and_die.py", tmp_path, str(earlier)]
    done = subprocess.run(command, env=unmeasured, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    deaths = int(done.stdout)
    assert deaths > 10
    seen = set()
    for deadly in range(deaths):
        with closing(opened(tmp_path / f"{deadly}.db")) as connection:
            assert schema(connection) in versions[earlier:]
            seen.add(versions.index(schema(connection)))
            upgrade(connection)
            assert schema(connection) == versions[-1]
    assert seen == set(range(earlier, len(MIGRATIONS)))


OPEN_TWICE = """
import asyncio, sys
from pathlib import Path
from mlxm.store.db import Database

async def main() -> None:
    async with await Database.open(Path(sys.argv[1])) as db:
        await db.read(lambda connection: connection.execute("SELECT * FROM audit").fetchall())

asyncio.run(main())
print("sqlite_utils" in sys.modules)
"""


def test_an_up_to_date_database_opens_without_sqlite_utils(tmp_path: Path) -> None:
    """Its import takes longer than all else at a start, and is needed once per version."""

    def imported() -> str:
        command = [sys.executable, "-c", OPEN_TWICE, tmp_path / "mlxm.db"]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True).stdout

    assert imported() == "True\n"
    assert imported() == "False\n"
