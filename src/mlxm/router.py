"""From the name in a request to the model that answers it: one function, for every way in.

An alias comes first, then a model on this machine's disk, then the built-in one.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from mlxm.checkpoint.names import nearest
from mlxm.engine.model_files import read_model_config
from mlxm.errors import InvalidRequest, ModelBroken, ModelNotFound
from mlxm.pool.pool import LocalModel
from mlxm.shelf import Shelf
from mlxm.tiny import BUILTIN_NAME, build_builtin
from mlxm.types import ModelInfo

_PATH_STARTS = ("/", "./", "../")
_MAX_LISTED = 5


class Router:
    """Knows which names there are."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._shelf = Shelf(home)
        self._builtin: LocalModel | None = None

    def names(self) -> tuple[str, ...]:
        """Every name that can be asked for. Blocks."""
        return tuple(dict.fromkeys((*self._shelf.names(), BUILTIN_NAME)))

    def listing(self) -> tuple[ModelInfo, ...]:
        """Every model that can be run, under each of its names. Blocks."""
        ready = [found for found in self._shelf.scan().models if found.state == "ready" and found.runnable]
        others = (_sound_model(found.id, found.path) for found in ready if found.id != BUILTIN_NAME)
        models = [*(model for model in others if model is not None), self._built_in()]
        infos = {model.name: _info(model.name, model) for model in models}
        for alias, target in self._shelf.aliases().items():
            if target in infos:
                infos.setdefault(alias, msgspec.structs.replace(infos[target], name=alias, target=target))
        return tuple(infos[name] for name in sorted(infos, key=str.casefold))

    async def find(self, name: str) -> ModelInfo:
        """What is known of the model of a name; raises what `resolve` raises."""
        return _info(name, await self.resolve(name))

    async def resolve(self, name: str, *, may_be_path: bool = False) -> LocalModel:
        """The model of a name; raises ModelNotFound, or ModelBroken when it cannot be run.

        A folder's path counts only where the person at this machine gave it, never when it came over the network.
        """
        return await asyncio.to_thread(self._find, name, may_be_path=may_be_path)

    def _find(self, name: str, *, may_be_path: bool) -> LocalModel:
        if may_be_path and name.startswith(_PATH_STARTS):
            return self._at(Path(name).resolve())
        target = self._shelf.aliases().get(name, name)
        if target == BUILTIN_NAME:
            return self._built_in()
        try:
            found = self._shelf.find(target)
        except (ModelNotFound, InvalidRequest) as error:
            raise self._unknown(name) from error
        if found.state != "ready":
            hint = f"mlxm pull {found.id}" if found.source == "hub" else None
            raise ModelBroken(f"{found.id} is {found.state}: {found.state_reason}", hint=hint, param="model")
        if not found.runnable:
            raise ModelBroken(f"{found.id} cannot be run: {found.runnable_reason}", param="model")
        return _model(found.id, found.path)

    def _unknown(self, name: str) -> ModelNotFound:
        known = self.names()
        near = nearest(name, known)
        hint = f"Near names: {', '.join(near)}." if near else f"There is: {', '.join(known[:_MAX_LISTED])}."
        return ModelNotFound(f"There is no model {name!r}.", hint=hint, param="model")

    def _built_in(self) -> LocalModel:
        """Checking a built-in model reads all of it, so that is done once and not for every request."""
        if self._builtin is None or not self._builtin.folder.is_dir():
            self._builtin = _model(BUILTIN_NAME, build_builtin(self._home))
        return self._builtin

    def _at(self, folder: Path) -> LocalModel:
        if not (folder / "config.json").is_file():
            raise ModelNotFound(f"{folder} holds no model: it has no config.json.", param="model")
        return _model(str(folder), folder)


def _model(name: str, folder: Path) -> LocalModel:
    return LocalModel(name=name, folder=folder, context_length=read_model_config(folder).context_length)


def _sound_model(name: str, folder: Path) -> LocalModel | None:
    """None for a model whose own files are wrong: asking for it says how, and the others are there without it."""
    try:
        return _model(name, folder)
    except ModelBroken:
        return None


def _info(name: str, model: LocalModel) -> ModelInfo:
    return ModelInfo(
        name=name,
        target=None if name == model.name else model.name,
        created_s=int((model.folder / "config.json").stat().st_mtime),
        context_length=model.context_length,
    )
