"""Whether a model's files are what they should be, told from the disk alone.

The Hub's cache names a content by its hash, which is then the proof; elsewhere the files' own headers have to do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import msgspec

from mlxm.catalog.hub_files import RemoteFile
from mlxm.catalog.local import LocalModel
from mlxm.checkpoint.safetensors import read_header
from mlxm.downloads.verify import is_as_said
from mlxm.errors import ModelBroken

Basis = Literal["sha256", "git", "header", "json", "size"]
_SHA256 = re.compile(r"[0-9a-f]{64}")
_GIT = re.compile(r"[0-9a-f]{40}")


class FileCheck(msgspec.Struct, frozen=True, kw_only=True):
    """A file, what it was judged by, and what is wrong with it, if anything is."""

    path: str
    size_bytes: int
    basis: Basis
    problem: str | None = None


def check_files(model: LocalModel, report: Callable[[int], None]) -> Iterator[FileCheck]:
    """Every file of a model, one after the other; `report` hears of the bytes that were read for a hash. Blocks."""
    for path in sorted(model.path.rglob("*")):
        if path.is_symlink() or path.is_file():
            yield _check(path, path.relative_to(model.path).as_posix(), report)


def total_bytes(model: LocalModel) -> int:
    """How much there is to read."""
    return sum(path.stat().st_size for path in model.path.rglob("*") if path.is_file())


def _check(path: Path, name: str, report: Callable[[int], None]) -> FileCheck:
    try:
        content = path.resolve(strict=True)
        size_bytes = content.stat().st_size
    except (OSError, RuntimeError):
        return FileCheck(path=name, size_bytes=0, basis="size", problem="its content is missing")
    basis = _basis(content, is_link=path.is_symlink())
    problem = _find_problem(path, content, _said(content, size_bytes, basis), report)
    return FileCheck(path=name, size_bytes=size_bytes, basis=basis, problem=problem)


def _basis(content: Path, *, is_link: bool) -> Basis:
    if is_link and _SHA256.fullmatch(content.name):
        return "sha256"
    if is_link and _GIT.fullmatch(content.name):
        return "git"
    by_suffix: dict[str, Basis] = {".safetensors": "header", ".json": "json"}
    return by_suffix.get(content.suffix, "size")


def _find_problem(path: Path, content: Path, said: RemoteFile | None, report: Callable[[int], None]) -> str | None:
    try:
        if said is not None and not is_as_said(content, said, report):
            return "it does not have the hash that it is stored under"
        if path.suffix == ".safetensors":
            read_header(path)
        if path.suffix == ".json":
            json.loads(content.read_bytes())
    except ModelBroken as error:
        return error.message
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    except (ValueError, RecursionError):
        return "it is not JSON"
    return None


def _said(content: Path, size_bytes: int, basis: Basis) -> RemoteFile | None:
    """What the cache itself says of a content, by the name that it gave it."""
    match basis:
        case "sha256":
            return RemoteFile(path=content.name, size_bytes=size_bytes, sha256=content.name)
        case "git":
            return RemoteFile(path=content.name, size_bytes=size_bytes, blob_id=content.name)
        case _:
            return None
