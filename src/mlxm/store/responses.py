"""Stored responses: answers that a client may fetch again and go on from, until their time is up.

Whoever asks sees only what the same owner stored; without keys there is one owner, who has no name.
"""

from __future__ import annotations

import sqlite3
import time

import msgspec

from mlxm.errors import Conflict, NotFound
from mlxm.store.db import Database

MAX_CHAIN = 10_000

_INSERT = """
INSERT INTO responses (id, owner, created_at, previous_id, input, output, response)
VALUES (:id, :owner, :created_at, :previous_id, :input, :output, :response)
"""
_SELECT = """
SELECT id, owner, created_at, previous_id, input, output, response FROM responses WHERE id = ? AND owner IS ?
"""
_CHAIN = """
WITH RECURSIVE chain (depth, id, owner, created_at, previous_id, input, output, response) AS (
    SELECT 0, id, owner, created_at, previous_id, input, output, response
    FROM responses WHERE id = :id AND owner IS :owner
    UNION ALL
    SELECT depth + 1, older.id, older.owner, older.created_at, older.previous_id, older.input, older.output,
           older.response
    FROM chain JOIN responses AS older ON older.id = chain.previous_id AND older.owner IS chain.owner
    WHERE depth < :max
)
SELECT id, owner, created_at, previous_id, input, output, response FROM chain ORDER BY depth DESC
"""


class StoredResponse(msgspec.Struct, frozen=True, kw_only=True):
    """One response: the response as it was sent, and the items that went in and came out, as JSON lists."""

    id: str
    owner: str | None = None
    created_at: float
    previous_id: str | None = None
    input: bytes
    output: bytes
    response: bytes


class Responses:
    """Keeps responses; those older than `keep_s` are gone at the next write, or when they are purged."""

    def __init__(self, db: Database, *, keep_s: float) -> None:
        self._db = db
        self._keep_s = keep_s

    async def add(self, response: StoredResponse) -> None:
        """Keep a response; Conflict when its id is taken."""
        oldest = time.time() - self._keep_s

        def insert(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM responses WHERE created_at < ?", (oldest,))
            try:
                connection.execute(_INSERT, msgspec.structs.asdict(response))
            except sqlite3.IntegrityError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY:
                    raise
                raise Conflict(f"The response {response.id} is stored already.") from error

        await self._db.write(insert)

    async def find(self, response_id: str, owner: str | None = None) -> StoredResponse:
        """The response of an id; NotFound."""
        rows = await self._db.read(lambda connection: connection.execute(_SELECT, (response_id, owner)).fetchall())
        return self._living(response_id, rows)[0]

    async def chain(self, response_id: str, owner: str | None = None) -> tuple[StoredResponse, ...]:
        """A response and all that it went on from, the oldest first; NotFound when any of them is gone."""
        asked = {"id": response_id, "owner": owner, "max": MAX_CHAIN}
        rows = await self._db.read(lambda connection: connection.execute(_CHAIN, asked).fetchall())
        found = self._living(response_id, rows)
        if found[0].previous_id is not None:
            raise _not_found(found[0].previous_id)
        return found

    async def delete(self, response_id: str, owner: str | None = None) -> None:
        """Forget a response; NotFound."""

        def delete(connection: sqlite3.Connection) -> int:
            return connection.execute(
                "DELETE FROM responses WHERE id = ? AND owner IS ?", (response_id, owner)
            ).rowcount

        if not await self._db.write(delete):
            raise _not_found(response_id)

    async def purge(self, before: float | None = None) -> int:
        """Forget every response from before a time, or all whose time is up; how many there were."""
        oldest = time.time() - self._keep_s if before is None else before

        def delete(connection: sqlite3.Connection) -> int:
            return connection.execute("DELETE FROM responses WHERE created_at < ?", (oldest,)).rowcount

        return await self._db.write(delete)

    def _living(self, response_id: str, rows: list[tuple[object, ...]]) -> tuple[StoredResponse, ...]:
        """The rows as responses; one whose time is up counts as gone even while its row is there."""
        fields = StoredResponse.__struct_fields__
        found = tuple(msgspec.convert(dict(zip(fields, row, strict=True)), StoredResponse) for row in rows)
        if not found:
            raise _not_found(response_id)
        oldest = time.time() - self._keep_s
        for each in found:
            if each.created_at < oldest:
                raise _not_found(each.id)
        return found


def _not_found(response_id: str) -> NotFound:
    return NotFound(f"There is no stored response {response_id}.", hint="It was never kept, or its time is up.")
