"""The models on this machine's disk: the Hub's cache, LM Studio's folder, imported folders, the built-in one."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from mlxm.catalog.cached_repos import CachedRepo, read_repo
from mlxm.catalog.characteristics import Characteristics
from mlxm.catalog.inventory import Inventory, list_files
from mlxm.catalog.memo import Memo, fingerprint_of
from mlxm.catalog.names import nearest, parse_name
from mlxm.catalog.places import Place, Roots, Source, find_places, places_of
from mlxm.catalog.verdict import State, judge
from mlxm.checkpoint.files import printable
from mlxm.errors import ModelNotFound
from mlxm.tiny import BUILTIN_NAME, BUILTIN_REVISION, build_builtin

__all__ = ["Listing", "LocalModel", "LocalModels", "Roots", "Source", "State"]

_WEIGHTS: Final = (".safetensors", ".gguf", ".bin", ".npz")


class LocalModel(msgspec.Struct, frozen=True, kw_only=True):
    """One model on disk."""

    id: str
    path: Path
    """The folder that holds config.json and the weights: a snapshot, in the Hub's cache."""
    source: Source
    revision: str | None = None
    """The commit of a Hub snapshot."""
    revisions: tuple[str, ...] = ()
    """All commits that are on disk, the newest first."""
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
    """Finds models under `roots`; keeps nothing between two calls, so that each sees the disk as it is."""

    def __init__(self, roots: Roots) -> None:
        self._roots = roots

    def scan(self) -> Listing:
        """Every model, with what could not be read; mlxm/tiny only when there is no other. Blocks."""
        problems: list[str] = []
        memo = Memo.open(self._roots.home)
        models: list[LocalModel] = []
        for place in find_places(self._roots, problems.append):
            try:
                model = _look(place, memo)
            except OSError as error:
                problems.append(f"{printable(place.folder)} cannot be read: {error.strerror}.")
                continue
            if model is not None:
                models.append(model)
        if not models:
            models.append(self._builtin(memo))
        memo.forget_others({model.path for model in models})
        memo.save()
        return Listing(tuple(sorted(models, key=lambda model: (model.id.casefold(), model.source))), tuple(problems))

    def list(self) -> tuple[LocalModel, ...]:
        """Every model. Blocks."""
        return self.scan().models

    def names(self) -> tuple[str, ...]:
        """The ids alone, which costs next to nothing: for completion and for near names. Blocks."""
        found = {place.id for place in find_places(self._roots, _ignore)}
        return (*sorted(found - {BUILTIN_NAME}), BUILTIN_NAME)

    def find(self, name: str, *, revision: str | None = None) -> LocalModel:
        """The model of that id, whatever its state; ModelNotFound with near names, InvalidRequest for no name at all.

        Where several places hold it, one that can be run comes first. `revision` is a commit, its beginning, or a ref
        such as main. The built-in model is made when it is not there. Blocks.
        """
        parsed = parse_name(name)
        memo = Memo.open(self._roots.home)
        if parsed.text == BUILTIN_NAME:
            build_builtin(self._roots.home)
            model = self._builtin(memo)
        else:
            model = self._best(parsed.text, memo, revision)
        memo.save()
        return model

    def _best(self, name: str, memo: Memo, revision: str | None) -> LocalModel:
        found = [_look(place, memo, revision) for place in places_of(name, self._roots)]
        models = [model for model in found if model is not None]
        if not models:
            raise self._not_found(name, revision, models_of_name=len(found))
        return max(models, key=lambda model: (model.state == "ready", model.runnable))

    def _not_found(self, name: str, revision: str | None, *, models_of_name: int) -> ModelNotFound:
        if models_of_name and revision is not None:
            return ModelNotFound(
                f"{name} is not on this machine in the revision {revision!a}.",
                hint="List the revisions with: mlxm show.",
                param="model",
            )
        near = nearest(name, self.names())
        hint = f"Near names: {', '.join(near)}." if near else "List what is here with: mlxm ls."
        return ModelNotFound(f"There is no model {name} on this machine.", hint=hint, param="model")

    def _builtin(self, memo: Memo) -> LocalModel:
        folder = self._roots.home / "models" / f"tiny-{BUILTIN_REVISION}"
        if not (folder / "config.json").exists():
            return LocalModel(
                id=BUILTIN_NAME, path=folder, source="builtin", state="ready", runnable=True, size_bytes=0, disk_bytes=0
            )
        place = Place(id=BUILTIN_NAME, source="builtin", folder=folder, root=self._roots.home)
        return _model(place, list_files(folder), memo)


def _look(place: Place, memo: Memo, revision: str | None = None) -> LocalModel | None:
    """The model at a place, None when there is none; raises OSError when it cannot be read."""
    if place.source != "hub":
        return _model(place, list_files(place.folder), memo) if revision is None else None
    repo = read_repo(place.folder)
    if repo is None:
        return None
    commit = repo.current if revision is None else repo.resolve(revision)
    if commit is None and revision is not None:
        return None
    if commit not in repo.commits:
        return _unfetched(place, repo, commit)
    return _cached(place, repo, commit, memo)


def _cached(place: Place, repo: CachedRepo, commit: str, memo: Memo) -> LocalModel:
    snapshot = msgspec.structs.replace(place, folder=repo.snapshot(commit))
    inventory = list_files(snapshot.folder)
    model = _model(snapshot, inventory, memo, num_unfinished=repo.num_unfinished)
    disk_bytes = _disk_bytes(repo)
    if model.state == "incomplete" and len(repo.commits) > 1:
        model = msgspec.structs.replace(model, state_reason=f"{model.state_reason}; other revisions are here")
    return msgspec.structs.replace(model, revision=commit, revisions=repo.commits, disk_bytes=disk_bytes)


def _unfetched(place: Place, repo: CachedRepo, commit: str | None) -> LocalModel:
    """The cache knows of a commit of which not one file has come."""
    return LocalModel(
        id=place.id,
        path=place.folder if commit is None else repo.snapshot(commit),
        source="hub",
        revision=commit,
        revisions=repo.commits,
        state="incomplete",
        state_reason="nothing but parts of files is here" if commit is None else f"{commit[:7]} has not been fetched",
        runnable=False,
        runnable_reason="it is incomplete",
        size_bytes=0,
        disk_bytes=_disk_bytes(repo),
    )


def _disk_bytes(repo: CachedRepo) -> int:
    """Blobs once each, and files that lie in snapshots themselves, as they do where links are not allowed."""
    own: dict[tuple[int, int], int] = {}
    for commit in repo.commits:
        own |= list_files(repo.snapshot(commit)).own_files
    return repo.blob_bytes + sum(own.values())


def _model(place: Place, inventory: Inventory, memo: Memo, *, num_unfinished: int = 0) -> LocalModel:
    used_s = max((file.used_s for file in inventory.files if file.name.endswith(_WEIGHTS)), default=None)
    fingerprint = fingerprint_of(inventory, name=place.id, num_unfinished=num_unfinished)
    remembered = memo.recall(place.folder, fingerprint)
    if remembered is None:
        verdict = judge(place.folder, inventory, name=place.id, num_unfinished=num_unfinished)
        remembered = memo.keep(place.folder, fingerprint, verdict, used_s)
    verdict, size_bytes = remembered.verdict, inventory.real_bytes
    return LocalModel(
        id=place.id,
        path=place.folder,
        source=place.source,
        state=verdict.state,
        state_reason=verdict.state_reason,
        runnable=verdict.runnable,
        runnable_reason=verdict.runnable_reason,
        size_bytes=size_bytes,
        disk_bytes=size_bytes,
        last_used=remembered.last_used(used_s),
        characteristics=verdict.characteristics,
    )


def _ignore(_: str) -> None:
    """Names are wanted, and no word about what has none."""
