"""Removing a model: the folder that is its own, in the place that it was found in, and nothing else."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import msgspec

from mlxm.catalog.local import LocalModel, Roots
from mlxm.catalog.names import hub_folder, parse_name
from mlxm.errors import Conflict, InvalidRequest
from mlxm.upkeep.fetches import is_fetched_now
from mlxm.upkeep.trash import count_bytes, remove_folder


class Removal(msgspec.Struct, frozen=True, kw_only=True):
    """What removing a model means: the folder that goes, or the imported one that is only forgotten."""

    id: str
    folder: Path | None = None
    root: Path | None = None
    forgotten: Path | None = None
    freed_bytes: int = 0


def plan_removal(model: LocalModel, roots: Roots) -> Removal:
    """What would be removed. Raises InvalidRequest for the built-in model, Conflict while the model is fetched."""
    match model.source:
        case "hub":
            folder = hub_folder(parse_name(model.id), roots.hub_cache)
            if is_fetched_now(folder, roots.hub_cache):
                raise Conflict(
                    f"{model.id} is being fetched.",
                    hint=f"Wait for it, or end it: Ctrl-C, or mlxm pull {model.id} --cancel where a server does it.",
                )
            return _removal(model, folder, roots.hub_cache)
        case "lmstudio" if roots.lmstudio is not None:
            return _removal(model, model.path, roots.lmstudio)
        case "builtin":
            raise InvalidRequest(f"{model.id} is built in, and made again when it is asked for.", param="model")
        case _:
            imported = [root for root in roots.imported if model.path.is_relative_to(root)]
            nearest = max(imported, key=lambda root: len(root.parts), default=None)
            return Removal(id=model.id, forgotten=nearest)


def remove(removal: Removal) -> None:
    """Remove the folder of a plan. Forbidden when it is no longer inside its root; StoreReadOnly when it cannot go."""
    if removal.folder is None or removal.root is None:
        return
    remove_folder(removal.folder, removal.root)
    if removal.folder.parent != removal.root:
        with suppress(OSError):  # it still holds other models
            removal.folder.parent.rmdir()


def _removal(model: LocalModel, folder: Path, root: Path) -> Removal:
    return Removal(id=model.id, folder=folder, root=root, freed_bytes=count_bytes(folder))
