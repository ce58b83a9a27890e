"""From a model's name to its folder in the Hub's cache and back; no name reaches a path outside it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from mlxm.checkpoint.names import ModelName, nearest, parse_name
from mlxm.errors import InvalidRequest

__all__ = ["ModelName", "hub_folder", "inside", "name_of_hub_folder", "nearest", "parse_name"]

_PREFIX: Final = "models--"


def hub_folder(name: ModelName, hub_cache: Path) -> Path:
    """Where the Hub's cache keeps a model; InvalidRequest when links lead that place out of the cache."""
    folder = hub_cache / name.cache_folder
    if not inside(hub_cache, folder):
        raise InvalidRequest(
            f"{folder} is a link that leads out of {hub_cache}.",
            hint="Put the model itself there, or add its folder with mlxm import.",
            param="model",
        )
    return folder


def name_of_hub_folder(folder_name: str) -> ModelName | None:
    """The name behind models--owner--repo, None when it is no such folder."""
    if not folder_name.startswith(_PREFIX):
        return None
    try:
        return parse_name(folder_name.removeprefix(_PREFIX).replace("--", "/"))
    except InvalidRequest:
        return None  # datasets, spaces, locks and whatever else lies in the cache


def inside(root: Path, path: Path) -> bool:
    """Whether `path`, with every link on its way followed, lies in `root`."""
    try:
        return path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError, ValueError):
        return False  # links in a circle, or characters that no path has: it leads nowhere
