"""The Hub's JSON as structs: what it says of a model, read leniently in what mlxm does not need and strictly else."""

from __future__ import annotations

import json
from typing import Any, TypeVar

import msgspec

from mlxm.catalog.hub_files import RemoteFile, check_hash, check_path

T = TypeVar("T")


class Lfs(msgspec.Struct, frozen=True):
    """Where a large file lies; the two listings of the API name its hash differently."""

    size: int
    sha256: str | None = None
    oid: str | None = None


class Sibling(msgspec.Struct, frozen=True):
    """A file in a model's description."""

    rfilename: str
    size: int | None = None
    blob_id: str | None = msgspec.field(default=None, name="blobId")
    lfs: Lfs | None = None


class TreeEntry(msgspec.Struct, frozen=True):
    """A file or folder in a listing of the tree."""

    type: str
    path: str
    oid: str
    size: int = 0
    lfs: Lfs | None = None


class TensorCount(msgspec.Struct, frozen=True):
    """How many numbers of each type the safetensors hold; packed weights count as the words they are packed in."""

    parameters: dict[str, int] = {}
    total: int | None = None


class Facts(msgspec.Struct, frozen=True):
    """A model in an answer, with as much as was asked for."""

    id: str
    sha: str | None = None
    gated: bool | str = False
    downloads: int = 0
    likes: int = 0
    tags: tuple[str, ...] = ()
    library: str | None = msgspec.field(default=None, name="library_name")
    pipeline: str | None = msgspec.field(default=None, name="pipeline_tag")
    last_modified: str | None = msgspec.field(default=None, name="lastModified")
    created: str | None = msgspec.field(default=None, name="createdAt")
    trending: float | None = msgspec.field(default=None, name="trendingScore")
    config: dict[str, Any] | None = None
    safetensors: TensorCount | None = None
    siblings: tuple[Sibling, ...] | None = None

    @property
    def is_mlx(self) -> bool:
        """Whether it is a model for MLX: by its library, its tags, or the community that makes nothing else."""
        return self.library == "mlx" or "mlx" in self.tags or self.id.startswith("mlx-community/")

    def files(self) -> tuple[RemoteFile, ...] | None:
        """All files with their sizes, None when the answer leaves them out."""
        if self.siblings is None:
            return None
        found = []
        for each in self.siblings:
            size = each.size if each.lfs is None else each.lfs.size
            if size is None:
                return None
            found.append(_file(each.rfilename, size, each.blob_id, each.lfs))
        return tuple(found)


def files_of_tree(entries: list[TreeEntry]) -> tuple[RemoteFile, ...]:
    """The files in a listing."""
    return tuple(
        _file(entry.path, entry.size if entry.lfs is None else entry.lfs.size, entry.oid, entry.lfs)
        for entry in entries
        if entry.type == "file"
    )


def decode(body: bytes, kind: type[T]) -> T:
    """An answer as `kind`; ValueError when it is anything else."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(str(error)) from error


def decode_config(body: bytes) -> dict[str, Any]:
    """A config.json; ValueError when it is none. Python's own JSON takes the Infinity that some of them hold."""
    try:
        found = json.loads(body)
    except RecursionError as error:
        raise ValueError(str(error)) from error
    if not isinstance(found, dict):
        raise ValueError(type(found).__name__)  # noqa: TRY004  (not a wrong argument: a wrong file)
    return found


def _file(path: str, size: int, blob_id: str | None, lfs: Lfs | None) -> RemoteFile:
    """An LFS file is known by its own hash; git's id would be that of the pointer to it."""
    if lfs is None:
        return RemoteFile(path=check_path(path), size_bytes=size, blob_id=check_hash(blob_id, path))
    sha256 = lfs.oid if lfs.sha256 is None else lfs.sha256
    return RemoteFile(path=check_path(path), size_bytes=size, sha256=check_hash(sha256, path))
