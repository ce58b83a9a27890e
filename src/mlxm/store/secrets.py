"""Values that must not be readable in a stolen database: provider keys and the like, encrypted by Fernet.

The key comes from two files beside the database, so a copy of the database alone is worthless. Without those files the
values are lost, and then the one useful answer is the list of what to enter again.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from pathlib import Path

import msgspec
from cryptography.fernet import Fernet, InvalidToken

from mlxm.errors import InvalidRequest, NotFound, SecretUnreadable
from mlxm.store.db import Database
from mlxm.store.keyfiles import KeyFiles, lost

ITERATIONS = 1_200_000
_MASKED_FROM_CHARS = 8
_TOKEN_TEXT = b"mlxm"


class _Stored(msgspec.Struct, frozen=True):
    """All ciphertexts by name, and the token that only the right key opens; it comes with the first value."""

    values: dict[str, bytes]
    token: bytes | None


class Secrets:
    """The encrypted values of one home; the key is derived in a thread, when first needed, and then kept."""

    def __init__(self, db: Database, home: Path, *, iterations: int = ITERATIONS) -> None:
        self._db = db
        self._home = home
        self._files = KeyFiles(home)
        self._iterations = iterations
        self._fernet: Fernet | None = None
        self._waiting = asyncio.Lock()  # keeps all but one waiter out of the thread pool
        self._deriving = threading.Lock()  # outlives a waiter that is cancelled while its thread works on

    async def put(self, name: str, value: str) -> None:
        """Keep `value` under `name`, in place of what was there; makes the key files with the first value."""
        if not name:
            raise InvalidRequest("A secret needs a name.", param="name")
        stored = await self._db.read(_select)
        fernet = await self._key(stored, mend=stored.token is None)
        ciphertext = fernet.encrypt(value.encode())

        def insert(connection: sqlite3.Connection) -> None:
            now = _select(connection)
            if now.token is None:
                _replace_token(connection, fernet)
            elif not _opens(fernet, now.token):
                raise self._wrong_key(now)
            connection.execute(
                "INSERT OR REPLACE INTO secrets (name, ciphertext, created_at) VALUES (?, ?, ?)",
                (name, ciphertext, time.time()),
            )

        await self._db.write(insert)

    async def get(self, name: str) -> str:
        """The value of `name`; SecretUnreadable names everything to be entered again when the key does not fit."""
        stored = await self._db.read(_select)
        if name not in stored.values:
            raise _unknown(name)
        fernet = await self._key(stored, mend=False)
        try:
            return fernet.decrypt(stored.values[name]).decode()
        except InvalidToken as error:
            if stored.token is None or not _opens(fernet, stored.token):
                raise self._wrong_key(stored) from error
            raise lost(f"The value of {name} in the database is damaged", [name]) from error

    async def delete(self, name: str) -> None:
        """Forget the value of `name`, readable or not."""

        def drop(connection: sqlite3.Connection) -> None:
            if connection.execute("DELETE FROM secrets WHERE name = ?", (name,)).rowcount == 0:
                raise _unknown(name)

        await self._db.write(drop)

    async def names(self) -> tuple[str, ...]:
        """The names of all values, readable or not."""
        return tuple((await self._db.read(_select)).values)

    async def unreadable(self) -> tuple[str, ...]:
        """The names of the values that the key files do not open."""
        stored = await self._db.read(_select)
        if not stored.values:
            return ()
        if await asyncio.to_thread(self._files.are_broken):
            return tuple(stored.values)
        return _misfits(await self._key(stored, mend=False), stored)

    async def reset(self) -> tuple[str, ...]:
        """Drop every value that the key files do not open, made anew where broken, and return the dropped names."""
        async with self._waiting:
            fernet = await asyncio.to_thread(self._derive_anew)

        def drop(connection: sqlite3.Connection) -> tuple[str, ...]:
            names = _misfits(fernet, _select(connection))
            connection.executemany("DELETE FROM secrets WHERE name = ?", [(name,) for name in names])
            _replace_token(connection, fernet)
            return names

        return await self._db.write(drop)

    async def _key(self, stored: _Stored, *, mend: bool) -> Fernet:
        async with self._waiting:
            return await asyncio.to_thread(self._derive_once, stored, mend=mend)

    def _derive_once(self, stored: _Stored, *, mend: bool) -> Fernet:
        with self._deriving:
            if self._fernet is None:
                if mend:
                    self._files.mend()
                self._fernet = Fernet(self._files.derive(self._iterations, stored.values))
            return self._fernet

    def _derive_anew(self) -> Fernet:
        with self._deriving:
            self._files.mend()
            self._fernet = Fernet(self._files.derive(self._iterations, ()))
            return self._fernet

    def _wrong_key(self, stored: _Stored) -> SecretUnreadable:
        return lost(f"The files salt and secret in {self._home} are not those of this database", stored.values)


def mask(value: str) -> str:
    """The value as it may be shown: its last four characters, and none of a short one."""
    return f"****{value[-4:]}" if len(value) >= _MASKED_FROM_CHARS else "****"


def _select(connection: sqlite3.Connection) -> _Stored:
    values = dict(connection.execute("SELECT name, ciphertext FROM secrets ORDER BY name").fetchall())
    token = connection.execute("SELECT token FROM secret_check").fetchone()
    return _Stored(values, None if token is None else token[0])


def _replace_token(connection: sqlite3.Connection, fernet: Fernet) -> None:
    token = fernet.encrypt(_TOKEN_TEXT)
    connection.execute("INSERT OR REPLACE INTO secret_check (id, token) VALUES (1, ?)", (token,))


def _opens(fernet: Fernet, ciphertext: bytes) -> bool:
    try:
        fernet.decrypt(ciphertext)
    except InvalidToken:
        return False
    return True


def _misfits(fernet: Fernet, stored: _Stored) -> tuple[str, ...]:
    return tuple(name for name, ciphertext in stored.values.items() if not _opens(fernet, ciphertext))


def _unknown(name: str) -> NotFound:
    return NotFound(f"No secret is named {name}.")
