"""From the name in a request to the model that answers it: one function, for every way in."""

from __future__ import annotations

import asyncio
import difflib
from pathlib import Path

from mlxm.engine.model_files import read_model_config
from mlxm.errors import ModelNotFound
from mlxm.pool.pool import LocalModel
from mlxm.tiny import BUILTIN_NAME, build_builtin

_PATH_STARTS = ("/", "./", "../")


class Router:
    """Knows which names there are."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._builtin: LocalModel | None = None

    def names(self) -> tuple[str, ...]:
        """Every name that can be asked for."""
        return (BUILTIN_NAME,)

    async def resolve(self, name: str, *, may_be_path: bool = False) -> LocalModel:
        """The model of a name; raises ModelNotFound.

        A folder's path counts only where the person at this machine gave it, never when it came over the network.
        """
        return await asyncio.to_thread(self._find, name, may_be_path=may_be_path)

    def _find(self, name: str, *, may_be_path: bool) -> LocalModel:
        if name == BUILTIN_NAME:
            return self._built_in()
        if may_be_path and name.startswith(_PATH_STARTS):
            return self._at(Path(name).resolve())
        near = difflib.get_close_matches(name, self.names(), n=3, cutoff=0.4)
        known = ", ".join(near) if near else ", ".join(self.names())
        raise ModelNotFound(
            f"There is no model {name!r}.", hint=f"{'Near names' if near else 'There is'}: {known}.", param="model"
        )

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
