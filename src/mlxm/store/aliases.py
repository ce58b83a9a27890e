"""Names of the user's own for models."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from mlxm.store.db import Database


class Alias(msgspec.Struct, frozen=True):
    """A name that stands for another."""

    name: str
    target: str


class Aliases:
    """Reads and writes the aliases."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def list(self) -> tuple[Alias, ...]:
        """Every alias, by name."""
        raise NotImplementedError

    async def find(self, name: str) -> Alias | None:
        """The alias of that name."""
        raise NotImplementedError

    async def set(self, name: str, target: str, *, installed: Collection[str] = ()) -> Alias:
        """Let `name` stand for `target`; InvalidRequest for a bad name, Conflict when it would hide a model."""
        raise NotImplementedError

    async def remove(self, name: str) -> None:
        """Forget an alias; NotFound when there is none."""
        raise NotImplementedError
