"""Removing a model: the folder that is its own, in the place that it was found in, and nothing else."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import msgspec

from mlxm.catalog.local import LocalModel, Roots
from mlxm.catalog.names import hub_folder, parse_name
from mlxm.downloads.lock import is_free
from mlxm.errors import Conflict, InvalidRequest
from mlxm.upkeep.trash import count_bytes, remove_folder


class Removal(msgspec.Struct, frozen=True, kw_only=True):
    """What removing a model means: the folder that goes, or None when the model is only forgotten."""

    id: str
    folder: Path | None
    root: Path | None
    freed_bytes: int


def plan_removal(model: LocalModel, roots: Roots) -> Removal:
    """What would be removed. Raises InvalidRequest for the built-in model, Conflict while the model is fetched."""
    match model.source:
        case "hub":
            folder = hub_folder(parse_name(model.id), roots.hub_cache)
            refuse_while_fetched(model.id, roots.hub_cache, folder)
            return _removal(model, folder, roots.hub_cache)
        case "lmstudio" if roots.lmstudio is not None:
            return _removal(model, model.path, roots.lmstudio)
        case "builtin":
            raise InvalidRequest(f"{model.id} is built in, and made again when it is asked for.", param="model")
        case _:
            return Removal(id=model.id, folder=None, root=None, freed_bytes=0)


def remove(removal: Removal) -> None:
    """Remove the folder of a plan. Forbidden when it is no longer inside its root; StoreReadOnly when it cannot go."""
    if removal.folder is None or removal.root is None:
        return
    remove_folder(removal.folder, removal.root)
    if removal.folder.parent != removal.root:
        with suppress(OSError):  # it still holds other models
            removal.folder.parent.rmdir()


def refuse_while_fetched(name: str, hub_cache: Path, folder: Path) -> None:
    """Raise Conflict while a process fetches the model."""
    if not is_free(hub_cache / ".locks" / folder.name / "mlxm.lock"):
        raise Conflict(f"{name} is being fetched.", hint="Cancel that first, or wait until it is done.")


def _removal(model: LocalModel, folder: Path, root: Path) -> Removal:
    return Removal(id=model.id, folder=folder, root=root, freed_bytes=count_bytes(folder))
