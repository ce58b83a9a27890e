from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mlxm.errors import StoreError
from mlxm.store.migrations import MIGRATIONS, applied, upgrade

if TYPE_CHECKING:
    import sqlite_utils

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


def test_two_processes_that_migrate_at_once_both_succeed(tmp_path: Path, versions: list[Schema]) -> None:
    """Whoever comes second finds the step done and goes on."""
    program = (
        "import sqlite3, sys, sqlite_utils; from mlxm.store.migrations import upgrade;"
        "c = sqlite3.connect(sys.argv[1], isolation_level=None); print(flush=True); sys.stdin.read(); upgrade(c)"
    )
    path = tmp_path / "mlxm.db"
    racing = [
        subprocess.Popen([sys.executable, "-c", program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    for child in racing:
        assert child.stdout is not None
        child.stdout.readline()
    for child in racing:
        assert child.stdin is not None
        child.stdin.close()
    for child in racing:
        assert child.wait(PATIENCE_S) == 0
        assert child.stdout is not None
        child.stdout.close()
    with closing(opened(path)) as connection:
        assert schema(connection) == versions[-1]


@pytest.mark.parametrize("earlier", range(len(MIGRATIONS)))
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
