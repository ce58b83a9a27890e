"""The Hub's cache on disk: which commits of a model are there, and which of them its name stands for.

    models--owner--repo/
        refs/main             the commit that the branch points to
        snapshots/<commit>/   links into blobs, under the names of the files
        blobs/<etag>          the files; <etag>.….incomplete while they come in

refs/main decides, because that is what every other program takes; without it the newest snapshot counts.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

import msgspec

_COMMIT: Final = re.compile(r"[0-9a-f]{7,64}", re.ASCII)
_FOLDER: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,127}", re.ASCII)
_REF: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,127}(/[A-Za-z0-9][\w.-]{0,127}){0,7}", re.ASCII)
_MAX_REF_BYTES: Final = 256
_INCOMPLETE: Final = ".incomplete"


class CachedRepo(msgspec.Struct, frozen=True, kw_only=True):
    """One model in the cache."""

    folder: Path
    commits: tuple[str, ...]
    """Every snapshot, the newest first."""
    main: str | None
    """What refs/main says."""
    num_unfinished: int
    """Files that came in part and have no whole one beside them."""
    blob_bytes: int
    """All that lies in blobs, parts included."""

    @property
    def current(self) -> str | None:
        """The commit that the model's name stands for; it may have no snapshot."""
        return self.main if self.main is not None else next(iter(self.commits), None)

    def snapshot(self, commit: str) -> Path:
        """The folder of a commit."""
        return self.folder / "snapshots" / commit

    def resolve(self, revision: str) -> str | None:
        """The commit of a ref or of a commit's beginning, None when it is not here."""
        if _REF.fullmatch(revision) is not None and ".." not in revision:
            commit = _read_ref(self.folder / "refs" / revision)
            if commit is not None:
                return commit
        matching = [commit for commit in self.commits if commit.startswith(revision)]
        return matching[0] if revision and len(matching) == 1 else None


def read_repo(folder: Path) -> CachedRepo | None:
    """What the cache has of a model; None when it has nothing but records. Raises OSError when it cannot be read."""
    commits = _commits(folder / "snapshots")
    blobs = _blobs(folder / "blobs")
    if not commits and not blobs:
        return None
    whole = {name for name in blobs if not name.endswith(_INCOMPLETE)}
    parts = {name.partition(".")[0] for name in blobs if name.endswith(_INCOMPLETE)}
    return CachedRepo(
        folder=folder,
        commits=commits,
        main=_read_ref(folder / "refs" / "main"),
        num_unfinished=len(parts - whole),
        blob_bytes=sum(blobs.values()),
    )


def _commits(folder: Path) -> tuple[str, ...]:
    try:
        with os.scandir(folder) as entries:
            found = [
                (entry.stat(follow_symlinks=False).st_mtime_ns, entry.name)
                for entry in entries
                if _FOLDER.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
            ]
    except (FileNotFoundError, NotADirectoryError):
        return ()
    return tuple(name for _, name in sorted(found, reverse=True))


def _blobs(folder: Path) -> dict[str, int]:
    try:
        with os.scandir(folder) as entries:
            return {
                entry.name: entry.stat(follow_symlinks=False).st_size
                for entry in entries
                if entry.is_file(follow_symlinks=False)
            }
    except (FileNotFoundError, NotADirectoryError):
        return {}


def _read_ref(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_REF_BYTES).decode("ascii", "replace").strip()
    except OSError:
        return None  # a ref that is not there points nowhere
    return text if _COMMIT.fullmatch(text) else None
