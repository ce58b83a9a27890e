"""The models that a fake Hub holds, and how the Hub describes them: as its API's JSON, with git and LFS hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

LFS_PATTERNS = ("*.safetensors", "*.bin", "*.gguf", "tokenizer.json")
"""What the Hub keeps outside git by default."""


@dataclass(frozen=True)
class FakeFile:
    """One file of a commit; `is_lfs` says that it lies outside git, under its sha256."""

    path: str
    content: bytes
    is_lfs: bool

    @property
    def sha256(self) -> str:
        """The hash of the content."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        """What git holds for an LFS file."""
        lines = ("version https://git-lfs.github.com/spec/v1", f"oid sha256:{self.sha256}", f"size {len(self.content)}")
        return "".join(f"{line}\n" for line in lines).encode()

    @property
    def oid(self) -> str:
        """The id of git's blob."""
        inside = self.pointer if self.is_lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(inside) + inside, usedforsecurity=False).hexdigest()

    @property
    def etag(self) -> str:
        """What the Hub calls this content in an ETag header."""
        return self.sha256 if self.is_lfs else self.oid

    def as_sibling(self, *, with_blobs: bool) -> dict[str, Any]:
        """The file in a model's description."""
        if not with_blobs:
            return {"rfilename": self.path}
        sibling = {"rfilename": self.path, "size": len(self.content), "blobId": self.oid}
        if self.is_lfs:
            pointer_size = len(self.pointer)
            sibling["lfs"] = {"sha256": self.sha256, "size": len(self.content), "pointerSize": pointer_size}
        return sibling

    def as_tree_entry(self) -> dict[str, Any]:
        """The file in a listing of the tree."""
        entry = {"type": "file", "oid": self.oid, "size": len(self.content), "path": self.path}
        if self.is_lfs:
            entry["lfs"] = {"oid": self.sha256, "size": len(self.content), "pointerSize": len(self.pointer)}
        return entry


@dataclass(frozen=True)
class FakeCommit:
    """All files of one revision, by path."""

    sha: str
    files: Mapping[str, FakeFile]


@dataclass
class FakeModel:
    """A repository; change it through the hub that holds it."""

    name: str
    tags: tuple[str, ...] = ("mlx", "safetensors")
    library: str | None = "mlx"
    pipeline: str | None = "text-generation"
    downloads: int = 0
    likes: int = 0
    trending: float = 0.0
    last_modified: str = "2025-11-01T12:00:00.000Z"
    gated: bool = False
    is_private: bool = False
    commits: dict[str, FakeCommit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    @property
    def author(self) -> str:
        """The part of the name before the slash."""
        return self.name.partition("/")[0]

    def commit_at(self, revision: str) -> FakeCommit | None:
        """The files at a branch, a tag or a commit."""
        return self.commits.get(self.refs.get(revision, revision))

    def add_commit(self, files: Mapping[str, bytes], revision: str, lfs: tuple[str, ...]) -> FakeCommit:
        """Put a new commit at the tip of `revision`."""
        found = {path: FakeFile(path, files[path], _is_lfs(path, lfs)) for path in sorted(files)}
        listing = json.dumps([self.name, len(self.commits), [(path, file.oid) for path, file in found.items()]])
        sha = hashlib.sha1(listing.encode(), usedforsecurity=False).hexdigest()
        commit = self.commits[sha] = FakeCommit(sha, found)
        self.refs[revision] = sha
        return commit

    def describe(self, commit: FakeCommit, *, with_blobs: bool = False) -> dict[str, Any]:
        """Everything that the API can say about the model at a commit."""
        config = commit.files.get("config.json")
        return {
            "_id": commit.sha[:24],
            "id": self.name,
            "modelId": self.name,
            "author": self.author,
            "sha": commit.sha,
            "lastModified": self.last_modified,
            "createdAt": self.last_modified,
            "private": self.is_private,
            "gated": "auto" if self.gated else False,
            "disabled": False,
            "downloads": self.downloads,
            "likes": self.likes,
            "trendingScore": self.trending,
            "library_name": self.library,
            "pipeline_tag": self.pipeline,
            "tags": list(self.tags),
            "config": None if config is None else _short_config(config.content),
            "siblings": [file.as_sibling(with_blobs=with_blobs) for file in commit.files.values()],
        }


def read_folder(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`, by its path in it."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def _is_lfs(path: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(path, pattern) or fnmatchcase(path, f"*/{pattern}") for pattern in patterns)


def _short_config(content: bytes) -> dict[str, Any]:
    """The few keys of config.json that the Hub repeats in its answers."""
    try:
        config = json.loads(content)
    except ValueError:
        return {}
    return {key: config[key] for key in ("architectures", "model_type", "quantization_config") if key in config}
