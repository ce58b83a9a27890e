"""How commands find the model that was named, and what they say when there is none."""

from __future__ import annotations

from mlxm.catalog.local import LocalModel
from mlxm.catalog.names import nearest
from mlxm.errors import ModelNotFound
from mlxm.shelf import Shelf


def find_model(shelf: Shelf, name: str) -> LocalModel:
    """The model of a name or an alias; ModelNotFound with the near names, and the way to find more."""
    try:
        return shelf.find(name)
    except ModelNotFound as error:
        raise not_installed(name, nearest(name, shelf.names())) from error


def not_installed(name: str, near: tuple[str, ...]) -> ModelNotFound:
    """There is no such model here."""
    search = f"mlxm search {name.rpartition('/')[2]}"
    hint = f"Did you mean {' or '.join(near)}?  ·  {search}" if near else search
    return ModelNotFound(f"The model {name!r} is not on this machine.", hint=hint, param="model")
