"""The audit trail: what was asked, when, and how it ended, and never a word of what was said.

A row is one finished request; its id is the one that the client, the log and the error body name.
"""

from __future__ import annotations

import sqlite3

import msgspec

from mlxm.errors import Conflict
from mlxm.store.db import Database

_INSERT = """
INSERT INTO audit (request_id, started_at, endpoint, dialect, model, status, error_code, duration_s, ttft_s,
                   tokens_in, tokens_out, tokens_cached)
VALUES (:request_id, :started_at, :endpoint, :dialect, :model, :status, :error_code, :duration_s, :ttft_s,
        :tokens_in, :tokens_out, :tokens_cached)
"""
_RECENT = """
SELECT request_id, started_at, endpoint, dialect, model, status, error_code, duration_s, ttft_s,
       tokens_in, tokens_out, tokens_cached
FROM audit ORDER BY started_at DESC, rowid DESC LIMIT ?
"""


class AuditRow(msgspec.Struct, frozen=True, kw_only=True):
    """One request: `started_at` in unix seconds, `ttft_s` None when no token was sent, `error_code` None on success."""

    request_id: str
    started_at: float
    endpoint: str
    dialect: str | None = None
    model: str | None = None
    status: int
    error_code: str | None = None
    duration_s: float
    ttft_s: float | None = None
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_cached: int = 0


class Audit:
    """Writes and reads the trail."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def record(self, row: AuditRow) -> None:
        """Keep `row` for good; Conflict when its request id is taken."""

        def insert(connection: sqlite3.Connection) -> None:
            try:
                connection.execute(_INSERT, msgspec.structs.asdict(row))
            except sqlite3.IntegrityError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY:
                    raise
                raise Conflict(f"The request {row.request_id} is in the audit trail already.") from error

        await self._db.write(insert)

    async def recent(self, limit: int) -> tuple[AuditRow, ...]:
        """The last `limit` requests, the newest first."""

        def select(connection: sqlite3.Connection) -> tuple[AuditRow, ...]:
            cursor = connection.execute(_RECENT, (limit,))
            return tuple(AuditRow(**dict(zip(AuditRow.__struct_fields__, row, strict=True))) for row in cursor)

        return await self._db.read(select)
