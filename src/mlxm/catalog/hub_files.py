"""Which files of a repository a model is made of. What can run a program when it is opened is never among them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

import msgspec

from mlxm.errors import InvalidRequest, ModelBroken

WANTED = (
    "*.safetensors",
    "*.json",
    "*.jinja",
    "*.txt",
    "*.model",
    "*.tiktoken",
    "tokenizer*",
    "README*",
    "LICENSE*",
)
"""What is fetched when nobody says otherwise."""

NEVER = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.gguf", "*.py", "*.pyc", "*.so")
"""What is not fetched whoever asks: pickles and programs run what they like, and mlxm reads no GGUF."""


_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


class RemoteFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file in a repository; the hashes are the Hub's word: `sha256` for large files, git's `blob_id` for small."""

    path: str
    size_bytes: int
    sha256: str | None = None
    blob_id: str | None = None

    @property
    def is_weights(self) -> bool:
        """Whether it holds tensors."""
        return self.path.endswith(".safetensors")


def select_files(
    files: Iterable[RemoteFile], include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> tuple[RemoteFile, ...]:
    """The files to fetch: those of WANTED, or of `include` when it is given, less `exclude` and less NEVER.

    Patterns are globs over the path; one that starts with a folder's name may end with a slash. Raises InvalidRequest
    when a pattern asks for what is never fetched.
    """
    for pattern in include:
        if _is_like(pattern.lower(), NEVER):
            raise InvalidRequest(
                f"mlxm does not fetch {pattern}: such files can run programs, or hold weights that it does not read.",
                hint="Models come as safetensors and JSON.",
                param="include",
            )
    wanted = tuple(include) if include else WANTED
    return tuple(
        file
        for file in files
        if _is_like(file.path, wanted) and not _is_like(file.path, exclude) and not _is_like(file.path.lower(), NEVER)
    )


def check_path(path: str) -> str:
    """The path of a file in a repository; ModelBroken when it leads out of the model's folder."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\\" in path or "\0" in path:
        raise ModelBroken(f"A file of the repository is called {path!r}, which leads out of the model's folder.")
    return path


def check_hash(said: str | None, path: str) -> str | None:
    """The hash of a file, which is its name in the cache; ModelBroken when it could be a path to somewhere else."""
    if said is not None and _HASH.fullmatch(said) is None:
        raise ModelBroken(f"The hash of {path!a} in the repository is none: {said[:80]!a}.")
    return said


def _is_like(path: str, patterns: Iterable[str]) -> bool:
    """Whether the path, or its last part, fits a pattern."""
    last = path.rpartition("/")[2]
    return any(
        fnmatchcase(path, f"{pattern}*" if pattern.endswith("/") else pattern) or fnmatchcase(last, pattern)
        for pattern in patterns
    )
