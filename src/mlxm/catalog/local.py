"""The models on this machine's disk: the Hub's cache, LM Studio's folder, imported folders, the built-in one."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from mlxm.catalog.characteristics import Characteristics

Source = Literal["hub", "lmstudio", "import", "builtin"]
State = Literal["ready", "incomplete", "broken"]


class Roots(msgspec.Struct, frozen=True, kw_only=True):
    """Where models are looked for; `home` is MLXM_HOME: the built-in model and the catalog's cache are kept there."""

    home: Path
    hub_cache: Path
    lmstudio: Path | None = None
    imported: tuple[Path, ...] = ()


class LocalModel(msgspec.Struct, frozen=True, kw_only=True):
    """One model on disk."""

    id: str
    path: Path
    """The folder that holds config.json and the weights: a snapshot, in the Hub's cache."""
    source: Source
    revision: str | None = None
    """The commit of a Hub snapshot."""
    revisions: tuple[str, ...] = ()
    """All commits that are on disk."""
    state: State
    state_reason: str | None = None
    """What is missing or damaged; None when ready."""
    runnable: bool
    runnable_reason: str | None = None
    """Why mlxm cannot run it even when it is whole; None when it can."""
    size_bytes: int
    """Real bytes of this revision's files, each file once."""
    disk_bytes: int
    """Real bytes of all revisions and of what was left part-way."""
    last_used: float | None = None
    """Unix seconds of the last read of a weight file, as far as the file system records it."""
    characteristics: Characteristics | None = None
    """None when config.json is absent or damaged."""


class Listing(msgspec.Struct, frozen=True):
    """What a scan found, ordered by id, and what it could not look into."""

    models: tuple[LocalModel, ...]
    problems: tuple[str, ...] = ()


class LocalModels:
    """Finds models under `roots`; holds no state but what it is given, so that every call sees the disk as it is."""

    def __init__(self, roots: Roots) -> None:
        self._roots = roots

    def scan(self) -> Listing:
        """Every model, with what could not be read; mlxm/tiny only when there is no other. Blocks."""
        raise NotImplementedError

    def list(self) -> tuple[LocalModel, ...]:
        """Every model. Blocks."""
        raise NotImplementedError

    def names(self) -> tuple[str, ...]:
        """The ids alone, which costs next to nothing: for completion and for near names. Blocks."""
        raise NotImplementedError

    def find(self, name: str, *, revision: str | None = None) -> LocalModel:
        """The model of that id, whatever its state; ModelNotFound with near names, InvalidRequest for no name at all.

        `revision` is a commit, its beginning, or a ref such as main. Blocks.
        """
        raise NotImplementedError
