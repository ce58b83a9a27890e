"""The files of a model folder as the disk has them: each counted once, links followed, and what is wrong named."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

import msgspec

_MAX_DEPTH: Final = 4
"""Model folders are flat, but for pooling and exports to other formats."""
_MAX_FILES: Final = 20_000


class File(msgspec.Struct, frozen=True):
    """One regular file; `name` is relative to the folder."""

    name: str
    size_bytes: int
    modified_ns: int
    used_s: float
    identity: tuple[int, int]
    """Device and inode: two names of one file share them."""
    is_link: bool


class Inventory(msgspec.Struct, frozen=True):
    """What lies in a folder."""

    files: tuple[File, ...] = ()
    folders: tuple[str, ...] = ()
    dangling: tuple[str, ...] = ()
    """Links to nothing, or in a circle."""
    unreadable: tuple[str, ...] = ()

    @property
    def top_names(self) -> tuple[str, ...]:
        """Names of files and folders at the top."""
        return (*(file.name for file in self.files if "/" not in file.name), *self.folders)

    @property
    def real_bytes(self) -> int:
        """What the files take, each counted once however many names it has."""
        return sum({file.identity: file.size_bytes for file in self.files}.values())

    @property
    def own_files(self) -> dict[tuple[int, int], int]:
        """Sizes of the files that lie in the folder itself, by identity."""
        return {file.identity: file.size_bytes for file in self.files if not file.is_link}

    @property
    def fingerprint(self) -> tuple[tuple[str, int, int], ...]:
        """Names, times and sizes: it changes when a file does."""
        return tuple(sorted((file.name, file.modified_ns, file.size_bytes) for file in self.files))


class _Collector:
    def __init__(self) -> None:
        self.files: list[File] = []
        self.folders: list[str] = []
        self.dangling: list[str] = []
        self.unreadable: list[str] = []

    def visit(self, folder: str, prefix: str, depth: int) -> None:
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    self._add(entry, f"{prefix}{entry.name}", depth)
        except OSError as error:
            self.unreadable.append(f"{prefix or folder}: {error.strerror}")

    def _add(self, entry: os.DirEntry[str], name: str, depth: int) -> None:
        try:
            if entry.is_dir(follow_symlinks=False):
                if depth == 0:
                    self.folders.append(entry.name)
                if depth < _MAX_DEPTH and not entry.name.startswith("."):
                    self.visit(entry.path, f"{name}/", depth + 1)
                return
            status = entry.stat()
        except OSError:
            self.dangling.append(name)
            return
        if stat.S_ISREG(status.st_mode) and len(self.files) < _MAX_FILES:
            identity = (status.st_dev, status.st_ino)
            self.files.append(
                File(name, status.st_size, status.st_mtime_ns, status.st_atime, identity, entry.is_symlink())
            )


def list_files(folder: Path) -> Inventory:
    """Everything in `folder`, its subfolders included; links to folders are not followed."""
    collector = _Collector()
    collector.visit(os.fspath(folder), "", 0)
    return Inventory(
        tuple(collector.files), tuple(collector.folders), tuple(collector.dangling), tuple(collector.unreadable)
    )
