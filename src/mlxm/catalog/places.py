"""Where models may lie: the Hub's cache, LM Studio's folder, and folders that the user has imported.

A place is a folder that claims to be a model; whether it is one is judged elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Literal

import msgspec

from mlxm.catalog.names import hub_folder, inside, name_of_hub_folder, parse_name
from mlxm.checkpoint.files import printable
from mlxm.errors import InvalidRequest

Source = Literal["hub", "lmstudio", "import", "builtin"]

_MODEL_FILES: Final = (".safetensors", ".gguf", ".npz", ".bin", ".pt", ".pth", ".part", ".onnx")


class Roots(msgspec.Struct, frozen=True, kw_only=True):
    """Where models are looked for; `home` is MLXM_HOME: the built-in model and the catalog's cache are kept there."""

    home: Path
    hub_cache: Path
    lmstudio: Path | None = None
    imported: tuple[Path, ...] = ()


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A folder that claims to hold the model `id`."""

    id: str
    source: Source
    folder: Path
    root: Path
    """The folder that it must not lead out of."""


Report = Callable[[str], None]
"""Takes a sentence about what could not be looked into."""


def find_places(roots: Roots, report: Report) -> Iterator[Place]:
    """Every place, in the order in which they count when two hold the same model."""
    yield from _hub_places(roots.hub_cache, report)
    if roots.lmstudio is not None:
        yield from _owned_places(roots.lmstudio, "lmstudio", report)
    for folder in roots.imported:
        yield from _imported_places(folder, report)


def places_of(name: str, roots: Roots) -> Iterator[Place]:
    """The places that may hold the model of that name; InvalidRequest when it is no name."""
    parsed = parse_name(name)
    folder = hub_folder(parsed, roots.hub_cache)
    if _is_spelled_so(folder):
        yield Place(id=parsed.text, source="hub", folder=folder, root=roots.hub_cache)
    lmstudio = roots.lmstudio
    if lmstudio is not None and parsed.owner is not None:
        owned = lmstudio / parsed.text
        if _is_spelled_so(owned) and _is_spelled_so(owned.parent) and inside(lmstudio, owned):
            yield Place(id=parsed.text, source="lmstudio", folder=owned, root=lmstudio)
    for imported in roots.imported:
        yield from (place for place in _imported_places(imported, _ignore) if place.id == parsed.text)


def _hub_places(root: Path, report: Report) -> Iterator[Place]:
    for entry in _folders(root, report):
        name = name_of_hub_folder(entry.name)
        if name is None:
            continue
        folder = root / entry.name
        if entry.is_symlink() and not inside(root, folder):
            report(f"{printable(folder)} is a link that leads out of {printable(root)}.")
        else:
            yield Place(id=name.text, source="hub", folder=folder, root=root)


def _owned_places(root: Path, source: Source, report: Report) -> Iterator[Place]:
    """Folders of the kind owner/model."""
    for owner in _folders(root, report):
        folder = root / owner.name
        if owner.is_symlink() and not inside(root, folder):
            report(f"{printable(folder)} is a link that leads out of {printable(root)}.")
            continue
        for entry in _folders(folder, report):
            place = _named_place(f"{owner.name}/{entry.name}", source, folder / entry.name, root, report)
            if place is not None:
                yield place


def _imported_places(root: Path, report: Report) -> Iterator[Place]:
    """An imported folder is a model, or holds models directly or by their owners."""
    try:
        if not root.is_dir():
            report(f"{printable(root)}, which was imported, is not there.")
            return
    except OSError as error:
        report(f"{printable(root)} cannot be read: {error.strerror}.")
        return
    if _looks_like_model(root):
        place = _named_place(root.name, "import", root, root, report)
        if place is not None:
            yield place
        return
    for entry in _folders(root, report):
        folder = root / entry.name
        if _looks_like_model(folder):
            place = _named_place(entry.name, "import", folder, root, report)
            if place is not None:
                yield place
        elif not entry.is_symlink():
            yield from _inner_places(folder, root, report)


def _inner_places(owner: Path, root: Path, report: Report) -> Iterator[Place]:
    for entry in _folders(owner, report):
        if _looks_like_model(owner / entry.name):
            place = _named_place(f"{owner.name}/{entry.name}", "import", owner / entry.name, root, report)
            if place is not None:
                yield place


def _named_place(text: str, source: Source, folder: Path, root: Path, report: Report) -> Place | None:
    try:
        name = parse_name(text)
    except InvalidRequest:
        report(f"{printable(folder)} is left out: {ascii(text)[:120]} is no name of a model.")
        return None
    if not inside(root, folder):
        report(f"{printable(folder)} is a link that leads out of {printable(root)}.")
        return None
    return Place(id=name.text, source=source, folder=folder, root=root)


def _folders(root: Path, report: Report) -> Iterator[os.DirEntry[str]]:
    """The folders in a folder by name, hidden ones left out; none when there is no such folder."""
    try:
        with os.scandir(root) as entries:
            found = [entry for entry in entries if not entry.name.startswith(".") and _is_folder(entry)]
    except FileNotFoundError:
        return
    except OSError as error:
        report(f"{printable(root)} cannot be read: {error.strerror}.")
        return
    yield from sorted(found, key=lambda entry: entry.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link in a circle


def _is_spelled_so(folder: Path) -> bool:
    """Many disks find a folder by capitals of any kind, but one model must not go by several names."""
    try:
        return folder.is_dir() and folder.name in os.listdir(folder.parent)  # noqa: PTH208 - names alone are wanted
    except OSError:
        return False


def _looks_like_model(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(entry.name == "config.json" or entry.name.endswith(_MODEL_FILES) for entry in entries)
    except OSError:
        return False  # whoever lists it reports it


def _ignore(_: str) -> None:
    """Looking for one model is no reason to speak of others."""
