"""What lies in the Hub's cache and serves no model: interrupted downloads, and revisions that nothing leads to.

A revision that is whole goes only where another whole one stays, and nothing goes that a living process writes to.
What other programs have fetched of a model on purpose, such as its tokenizer alone, is not taken for interrupted.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import msgspec

from mlxm.catalog.inventory import list_files
from mlxm.catalog.names import inside, name_of_hub_folder
from mlxm.catalog.verdict import judge
from mlxm.checkpoint.safetensors import INDEX_NAME
from mlxm.downloads.lock import is_free
from mlxm.errors import StoreReadOnly
from mlxm.upkeep.fetches import is_fetched_now
from mlxm.upkeep.trash import PREFIX, count_bytes, remove_folder

What = Literal[
    "unfinished file", "incomplete model", "incomplete revision", "old revision", "unused content", "removed model"
]
_INCOMPLETE = ".incomplete"


class Leftover(msgspec.Struct, frozen=True, kw_only=True):
    """Something that can go; `contents` are the files that go with it because nothing else needs them."""

    what: What
    name: str
    path: Path
    size_bytes: int
    contents: tuple[Path, ...] = ()


def find_leftovers(hub_cache: Path) -> tuple[Leftover, ...]:
    """Everything that can go from the cache. Blocks."""
    found = [_of_folder("removed model", path.name, path) for path in sorted(hub_cache.glob(f"{PREFIX}*"))]
    for folder in sorted(hub_cache.glob("models--*")):
        name = name_of_hub_folder(folder.name)
        if name is not None and not folder.is_symlink() and not is_fetched_now(folder, hub_cache):
            found.extend(_Repo(folder, name.text, hub_cache / ".locks" / folder.name).leftovers())
    return tuple(found)


def remove_leftover(leftover: Leftover, hub_cache: Path) -> None:
    """Remove one of them; StoreReadOnly when it cannot go."""
    try:
        files = leftover.contents
        if leftover.path.is_dir():
            remove_folder(leftover.path, hub_cache)
        else:
            files = (leftover.path, *files)
        for path in files:
            if inside(hub_cache, path):
                path.unlink(missing_ok=True)
    except OSError as error:
        raise StoreReadOnly(f"{leftover.path} cannot be removed: {error.strerror}.") from error


class _Repo:
    """One model's folder in the cache, as far as it matters here."""

    def __init__(self, folder: Path, name: str, locks: Path) -> None:
        self._folder = folder
        self._name = name
        self._locks = locks
        self._blobs = {path for path in folder.glob("blobs/*") if path.is_file()}
        self._parts = {path for path in self._blobs if path.name.endswith(_INCOMPLETE)}
        self._refs = {path: path.read_text(errors="replace").strip() for path in _files(folder / "refs")}
        self._states = {
            path: judge(path, list_files(path), name=name).state
            for path in sorted(folder.glob("snapshots/*"))
            if path.is_dir()
        }

    def leftovers(self) -> Iterator[Leftover]:
        """What of it can go."""
        whole = {path for path, state in self._states.items() if state == "ready"}
        if not whole and "broken" not in self._states.values():
            if self._was_interrupted():
                yield _of_folder("incomplete model", self._name, self._folder)
            return
        named = {path for path in whole if path.name in self._refs.values()}
        yield from self._parts_that_nobody_writes()
        yield from self._without_need(named or whole)

    def _was_interrupted(self) -> bool:
        """Whether somebody wanted all of it; mlxm lets a branch lead to a revision only when that is whole."""
        is_named = any(path.name in self._refs.values() for path in self._states)
        is_ours = (self._locks / "mlxm.lock").exists() and not is_named
        has_index = any((path / INDEX_NAME).exists() for path in self._states)
        return is_ours or has_index or any(map(self._is_abandoned, self._parts))

    def _parts_that_nobody_writes(self) -> Iterator[Leftover]:
        for path in filter(self._is_abandoned, sorted(self._parts)):
            yield _of_files("unfinished file", self._name, path)

    def _is_abandoned(self, part: Path) -> bool:
        """The Hub's library holds a lock of the content's name while it writes a part of it."""
        return is_free(self._locks / f"{part.name.partition('.')[0]}.lock")

    def _without_need(self, kept: set[Path]) -> Iterator[Leftover]:
        """Revisions beside those that are kept, each with the contents that it alone has, and contents of none."""
        kept = kept | {path for path, state in self._states.items() if state == "broken"}
        needed = {content for path in kept for content in _contents(path)}
        for path in self._states.keys() - kept:
            alone = _contents(path) - needed
            needed |= alone
            refs = {ref for ref, commit in self._refs.items() if commit == path.name}
            what: What = "incomplete revision" if self._states[path] == "incomplete" else "old revision"
            yield _of_files(what, self._name, path, sorted(alone | refs))
        for path in sorted(self._blobs - self._parts - needed):
            yield _of_files("unused content", self._name, path)


def _contents(snapshot: Path) -> set[Path]:
    """The files that the links of a snapshot lead to, one step."""
    links = (path for path in snapshot.rglob("*") if path.is_symlink())
    return {Path(os.path.normpath(link.parent / link.readlink())) for link in links}


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _of_folder(what: What, name: str, path: Path) -> Leftover:
    return Leftover(what=what, name=name, path=path, size_bytes=count_bytes(path))


def _of_files(what: What, name: str, path: Path, contents: Iterable[Path] = ()) -> Leftover:
    found = tuple(contents)
    own = count_bytes(path) if path.is_dir() else path.stat().st_size
    size_bytes = own + sum(content.stat().st_size for content in found if content.exists())
    return Leftover(what=what, name=name, path=path, size_bytes=size_bytes, contents=found)
