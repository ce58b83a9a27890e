"""Names of the user's own for models: an alias may stand for any model, and may hide none."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Collection, Mapping
from typing import Final

import msgspec

from mlxm.checkpoint.names import nearest, parse_name
from mlxm.errors import Conflict, InvalidRequest, NotFound
from mlxm.store.db import Database

_RESERVED: Final = "mlxm"
"""The owner of the built-in models."""
_TARGET: Final = re.compile(r"[A-Za-z0-9][\w.:@+/-]{0,199}", re.ASCII)
"""Wider than the name of a local model: providers have names of their own kind."""
_SET: Final = """
INSERT INTO aliases (name, target) VALUES (?, ?)
ON CONFLICT (name) DO UPDATE SET target = excluded.target
"""


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

        def select(connection: sqlite3.Connection) -> tuple[Alias, ...]:
            rows = connection.execute("SELECT name, target FROM aliases ORDER BY name")
            return tuple(Alias(name, target) for name, target in rows)

        return await self._db.read(select)

    async def find(self, name: str) -> Alias | None:
        """The alias of that name, None when there is none."""

        def select(connection: sqlite3.Connection) -> Alias | None:
            row = connection.execute("SELECT name, target FROM aliases WHERE name = ?", (name,)).fetchone()
            return None if row is None else Alias(*row)

        return await self._db.read(select)

    async def set(self, name: str, target: str, *, installed: Collection[str] = ()) -> Alias:
        """Let `name` stand for `target` from now on.

        Raises InvalidRequest for what is no name, Conflict when it would hide a model of `installed` or a built-in one,
        or when following aliases would never end.
        """

        def insert(connection: sqlite3.Connection) -> Alias:
            known = dict(connection.execute("SELECT name, target FROM aliases ORDER BY name"))
            alias = check_alias(name, target, known=known, installed=installed)
            connection.execute(_SET, (alias.name, alias.target))
            return alias

        return await self._db.write(insert)

    async def remove(self, name: str) -> None:
        """Forget an alias; NotFound, with near names, when there is none."""

        def delete(connection: sqlite3.Connection) -> None:
            if connection.execute("DELETE FROM aliases WHERE name = ?", (name,)).rowcount == 0:
                known = [row[0] for row in connection.execute("SELECT name FROM aliases")]
                near = nearest(name, known)
                hint = f"Near names: {', '.join(near)}." if near else "List them with: mlxm alias ls."
                raise NotFound(f"There is no alias {name!a}.", hint=hint)

        await self._db.write(delete)


def check_alias(name: str, target: str, *, known: Mapping[str, str], installed: Collection[str] = ()) -> Alias:
    """The alias that `name` would be beside those already known; raises what Aliases.set raises."""
    alias = Alias(parse_name(name).text, _checked_target(target))
    if name.split("/", maxsplit=1)[0].casefold() == _RESERVED:
        raise Conflict(f"The names of {_RESERVED}/… belong to mlxm itself.", hint="Choose another name.")
    if name.casefold() in {model.casefold() for model in installed}:
        raise Conflict(f"{name} is the name of a model on this machine.", hint="Choose another name.")
    _refuse_chain(alias, known)
    return alias


def _checked_target(target: str) -> str:
    if _TARGET.fullmatch(target) is None or ".." in target or "//" in target:
        raise InvalidRequest(f"{ascii(target)[:120]} is no name of a model.", hint="Name what mlxm ls lists.")
    return target


def _refuse_chain(alias: Alias, known: Mapping[str, str]) -> None:
    """An alias stands for a model and never for another alias, so that looking one up is one step."""
    if alias.target == alias.name or alias.target in known:
        raise Conflict(f"{alias.target} is an alias itself.", hint="Give the name of the model that it stands for.")
    pointing = next((name for name, target in known.items() if target == alias.name), None)
    if pointing is not None:
        raise Conflict(
            f"{alias.name} cannot become an alias: the alias {pointing} stands for it.",
            hint=f"Remove that one first: mlxm alias rm {pointing}.",
        )
