"""The families of the models on disk: what prep found out about a folder holds until one of its files changes."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from pathlib import Path
from typing import Final

import msgspec

from mlxm.engine.formats.families import Family
from mlxm.pool.prep import Prep
from mlxm.prep.files import Revision, revision

_PLACES: Final = 64


class Markup(msgspec.Struct, frozen=True, kw_only=True):
    """How a model writes: its family, the ids of tokens that are markup, and of those that end its answers."""

    family: Family
    special_ids: dict[str, int] = {}
    """Tokens that are special, at least to grammars."""
    stop_ids: tuple[int, ...] = ()


class Families:
    """Knows the latest models' markup."""

    def __init__(self, prep: Prep) -> None:
        self._prep = prep
        self._known: OrderedDict[Path, tuple[Revision, Markup]] = OrderedDict()

    async def of(self, folder: Path) -> Markup:
        """The markup of the model in `folder`; raises what `Prep.describe` raises."""
        now = await asyncio.to_thread(revision, folder)
        known = self._known.pop(folder, None)
        if known is None or known[0] != now:
            described = await self._prep.describe(folder)
            family = msgspec.msgpack.decode(described.family, type=Family)
            markup = Markup(family=family, special_ids=described.special_ids, stop_ids=described.stop_ids)
            known = (now, markup)
        self._known[folder] = known
        if len(self._known) > _PLACES:
            self._known.popitem(last=False)
        return known[1]
