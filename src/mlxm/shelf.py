"""The models of this machine by every name that people have for them: one way to resolve it, for every way in.

It keeps nothing between two questions, so that what another process has changed is seen at once.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from mlxm.catalog.local import Listing, LocalModel, LocalModels, Roots
from mlxm.store.imports import read_imports
from mlxm.store.look import DATABASE_NAME, look

LM_STUDIO = Path(".lmstudio") / "models"


def find_roots(home: Path) -> Roots:
    """Where the models of this user are; raises StoreError when the list of imported folders cannot be read."""
    from huggingface_hub.constants import HF_HUB_CACHE  # noqa: PLC0415  # read when asked: HF_HOME may have been set since

    lmstudio = Path.home() / LM_STUDIO
    return Roots(
        home=home,
        hub_cache=Path(HF_HUB_CACHE),
        lmstudio=lmstudio if lmstudio.is_dir() else None,
        imported=read_imports(home / DATABASE_NAME),
    )


class Shelf:
    """Finds models by id and by alias. Every method blocks, and may raise StoreError."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def roots(self) -> Roots:
        """Where models are looked for now."""
        return find_roots(self.home)

    def scan(self) -> Listing:
        """Every model, with what could not be read."""
        return LocalModels(self.roots()).scan()

    def aliases(self) -> dict[str, str]:
        """What each alias stands for."""
        found = look(self.home / DATABASE_NAME, "aliases", _read_aliases)
        return {} if found is None else found

    def names(self) -> tuple[str, ...]:
        """Every name that a model can be asked for by: ids first, then aliases."""
        return (*LocalModels(self.roots()).names(), *self.aliases())

    def find(self, name: str, *, revision: str | None = None) -> LocalModel:
        """The model of a name, whatever its state; ModelNotFound, or InvalidRequest when it can be no name."""
        return LocalModels(self.roots()).find(self.aliases().get(name, name), revision=revision)


def _read_aliases(connection: sqlite3.Connection) -> dict[str, str]:
    return dict(connection.execute("SELECT name, target FROM aliases ORDER BY name"))
