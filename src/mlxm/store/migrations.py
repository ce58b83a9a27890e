"""The schema's history: a list that only ever grows, because databases of every earlier version are out there.

sqlite-utils takes more than a second to import, so it is loaded only when a migration is pending.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mlxm.errors import StoreError

if TYPE_CHECKING:
    import sqlite_utils

Migration = Callable[["sqlite_utils.Database"], None]

_SET = "mlxm"


def m001_secrets(db: sqlite_utils.Database) -> None:
    """Encrypted values, and one token that tells whether the key still fits them."""
    db.table("secrets").create(
        {"name": str, "ciphertext": bytes, "created_at": float},
        pk="name",
        not_null={"ciphertext", "created_at"},
        strict=True,
    )
    db.table("secret_check").create({"id": int, "token": bytes}, pk="id", not_null={"token"}, strict=True)


def m002_audit(db: sqlite_utils.Database) -> None:
    """One row per request, without a word of its content."""
    db.table("audit").create(
        {
            "request_id": str,
            "started_at": float,
            "endpoint": str,
            "dialect": str,
            "model": str,
            "status": int,
            "error_code": str,
            "duration_s": float,
            "ttft_s": float,
            "tokens_in": int,
            "tokens_out": int,
            "tokens_cached": int,
        },
        pk="request_id",
        not_null={"started_at", "endpoint", "status", "duration_s", "tokens_in", "tokens_out", "tokens_cached"},
        strict=True,
    )
    db.table("audit").create_index(["started_at"])


def m003_aliases(db: sqlite_utils.Database) -> None:
    """The user's own names for models."""
    db.table("aliases").create({"name": str, "target": str}, pk="name", not_null={"target"}, strict=True)


def m004_imports(db: sqlite_utils.Database) -> None:
    """Folders of the user's own that hold a model."""
    db.table("imports").create({"path": str, "added_at": float}, pk="path", not_null={"added_at"}, strict=True)


def m005_responses(db: sqlite_utils.Database) -> None:
    """Answers that a client may go on from, and what was said to get them; the owner is the key that asked."""
    db.table("responses").create(
        {
            "id": str,
            "owner": str,
            "created_at": float,
            "previous_id": str,
            "input": bytes,
            "output": bytes,
            "response": bytes,
        },
        pk="id",
        not_null={"created_at", "input", "output", "response"},
        strict=True,
    )
    db.table("responses").create_index(["created_at"])


MIGRATIONS: tuple[Migration, ...] = (m001_secrets, m002_audit, m003_aliases, m004_imports, m005_responses)


def upgrade(connection: sqlite3.Connection, migrations: Sequence[Migration] = MIGRATIONS) -> None:
    """Bring the database up to date, each step in a transaction of its own; refuse one made by a newer mlxm."""
    names = [migration.__name__ for migration in migrations]
    unknown = applied(connection).difference(names)
    if unknown:
        raise StoreError(
            f"The database was written by a newer mlxm: it has {', '.join(sorted(unknown))}.",
            hint="Update mlxm, or set MLXM_HOME to another folder.",
        )
    if applied(connection).issuperset(names):
        return
    for count in range(1, len(migrations) + 1):
        _apply(connection, migrations[:count])


def applied(connection: sqlite3.Connection) -> set[str]:
    """The names of the migrations that the database has had."""
    if connection.execute("SELECT 1 FROM sqlite_master WHERE name = '_sqlite_migrations'").fetchone() is None:
        return set()
    rows = connection.execute("SELECT name FROM _sqlite_migrations WHERE migration_set = ?", (_SET,))
    return {name for (name,) in rows}


def _apply(connection: sqlite3.Connection, migrations: Sequence[Migration]) -> None:
    """Apply the last of `migrations`, the others being there, unless another process was faster."""
    import sqlite_utils  # noqa: PLC0415 - more than a second, and rarely needed

    known = sqlite_utils.Migrations(_SET)
    for migration in migrations:
        known()(migration)
    db = sqlite_utils.Database(connection, recursive_triggers=False, execute_plugins=False)
    # Inside a transaction sqlite-utils uses savepoints, so its own table and ours change together or not at all,
    # and with the write lock taken first nobody else can find the same step pending.
    connection.execute("BEGIN IMMEDIATE")
    try:
        known.apply(db)
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
