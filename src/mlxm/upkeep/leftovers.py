"""What lies in the Hub's cache and serves no model: unfinished downloads, and revisions that nothing leads to."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import msgspec

from mlxm.catalog.local import LocalModel
from mlxm.catalog.names import inside, name_of_hub_folder
from mlxm.downloads.lock import is_free
from mlxm.errors import StoreReadOnly
from mlxm.upkeep.fetches import is_fetched_now
from mlxm.upkeep.trash import PREFIX, count_bytes, remove_folder

What = Literal["unfinished file", "incomplete model", "old revision", "unused content", "removed model"]
_INCOMPLETE = ".incomplete"


class Leftover(msgspec.Struct, frozen=True, kw_only=True):
    """Something that can go; `contents` are the files that go with it because nothing else needs them."""

    what: What
    name: str
    path: Path
    size_bytes: int
    contents: tuple[Path, ...] = ()


def find_leftovers(hub_cache: Path, models: Iterable[LocalModel]) -> tuple[Leftover, ...]:
    """Everything that can go from the cache; what a living process writes to is left out. Blocks."""
    unready = {model.id for model in models if model.source == "hub" and model.state == "incomplete"}
    found = [_of_trash(path) for path in sorted(hub_cache.glob(f"{PREFIX}*"))]
    for folder in sorted(hub_cache.glob("models--*")):
        name = name_of_hub_folder(folder.name)
        if name is None or folder.is_symlink() or is_fetched_now(folder, hub_cache):
            continue
        if name.text in unready:
            found.append(_of_whole(folder, name.text))
        else:
            found.extend(_of_model(folder, name.text, hub_cache / ".locks" / folder.name))
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


def _of_trash(path: Path) -> Leftover:
    return Leftover(what="removed model", name=path.name, path=path, size_bytes=count_bytes(path))


def _of_whole(folder: Path, name: str) -> Leftover:
    return Leftover(what="incomplete model", name=name, path=folder, size_bytes=count_bytes(folder))


def _of_model(folder: Path, name: str, locks: Path) -> Iterator[Leftover]:
    """What one whole model can do without."""
    blobs = {path for path in folder.glob("blobs/*") if path.is_file()}
    unfinished = {path for path in blobs if path.name.endswith(_INCOMPLETE)}
    for path in sorted(unfinished):
        if is_free(locks / f"{path.name.partition('.')[0]}.lock"):
            yield _of_files("unfinished file", name, path, ())
    needed, old = _revisions(folder)
    still_needed = {blob for snapshot in needed for blob in _contents(snapshot)}
    for snapshot in old:
        alone = _contents(snapshot) - still_needed
        still_needed |= alone
        yield _of_files("old revision", name, snapshot, sorted(alone))
    for path in sorted(blobs - unfinished - still_needed):
        yield _of_files("unused content", name, path, ())


def _revisions(folder: Path) -> tuple[list[Path], list[Path]]:
    """The snapshots that a branch or tag leads to, and the others; when there are only others they are all needed."""
    snapshots = sorted(path for path in folder.glob("snapshots/*") if path.is_dir())
    named = {path.read_text(errors="replace").strip() for path in folder.glob("refs/**/*") if path.is_file()}
    needed = [path for path in snapshots if path.name in named]
    return (needed, [path for path in snapshots if path.name not in named]) if needed else (snapshots, [])


def _contents(snapshot: Path) -> set[Path]:
    """The files that the links of a snapshot lead to, one step."""
    links = (path for path in snapshot.rglob("*") if path.is_symlink())
    return {Path(os.path.normpath(link.parent / link.readlink())) for link in links}


def _of_files(what: What, name: str, path: Path, contents: Iterable[Path]) -> Leftover:
    found = tuple(contents)
    own = count_bytes(path) if path.is_dir() else path.stat().st_size
    return Leftover(
        what=what,
        name=name,
        path=path,
        size_bytes=own + sum(content.stat().st_size for content in found if content.exists()),
        contents=found,
    )
