"""One model in the Hub's cache on disk: what is there, what is missing, and what a dead process left behind.

models--owner--repo/blobs/HASH            contents, by the hash that the Hub gives them
models--owner--repo/snapshots/COMMIT/PATH  links to them
models--owner--repo/refs/REVISION          the commit of a branch: written here only once all of it is verified
.locks/models--owner--repo/                HASH.lock of huggingface_hub, and what mlxm keeps of its own
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path

from mlxm.catalog.hub_files import RemoteFile
from mlxm.catalog.names import hub_folder, parse_name
from mlxm.downloads.lock import is_free
from mlxm.errors import InvalidRequest

_INCOMPLETE = ".incomplete"


class ModelCache:
    """The files of the model `name` below the cache folder."""

    def __init__(self, cache: Path, name: str) -> None:
        model = parse_name(name)
        self.cache = cache
        self._folder = hub_folder(model, cache)
        self._locks = cache / ".locks" / model.cache_folder
        self.lock_path = self._locks / "mlxm.lock"
        self.notebook_path = self._locks / "mlxm-verified.json"

    def snapshot(self, commit: str) -> Path:
        """The folder that is the model at a commit."""
        return self._folder / "snapshots" / commit

    def place(self, commit: str, file: RemoteFile) -> Path:
        """Where a file of the model is found."""
        return self.snapshot(commit) / file.path

    def is_present(self, commit: str, file: RemoteFile) -> bool:
        """Whether the file is there with its right size; its hash is another matter."""
        return _size(self.place(commit, file)) == file.size_bytes

    def missing(self, commit: str, files: Iterable[RemoteFile]) -> tuple[RemoteFile, ...]:
        """The files of a commit that are not in its folder."""
        return tuple(file for file in files if not self.is_present(commit, file))

    def needed_bytes(self, commit: str, files: Iterable[RemoteFile]) -> int:
        """How much would be fetched: contents that another commit brought already are linked and cost nothing."""
        return sum(file.size_bytes for file in self.missing(commit, files) if not self._has_content(file))

    def discard_wrong_size(self, commit: str, file: RemoteFile) -> None:
        """Remove what huggingface_hub would take for the file because something lies in its place."""
        blob = self._blob(file)
        sizes = {_size(self.place(commit, file)), None if blob is None else _size(blob)}
        if sizes - {None, file.size_bytes}:
            self.discard(commit, file)

    def discard(self, commit: str, file: RemoteFile) -> None:
        """Remove a file that is not what it should be, with its content, so that nothing takes it for good."""
        root = self.cache.resolve()
        for path in (self.place(commit, file), self._blob(file)):
            if path is not None and os.path.lexists(path):
                content = path.resolve()
                path.unlink()
                if content.is_relative_to(root):
                    content.unlink(missing_ok=True)

    def remove_leftovers(self) -> int:
        """Remove what dead processes left of unfinished files, which nobody can continue; how many bytes that frees.

        huggingface_hub holds HASH.lock while it writes HASH.*.incomplete, so files of the living are kept.
        """
        freed = 0
        for path in sorted((self._folder / "blobs").glob(f"*{_INCOMPLETE}")):
            if is_free(self._locks / f"{path.name.partition('.')[0]}.lock"):
                size = _size(path)
                path.unlink(missing_ok=True)
                freed += 0 if size is None else size
        return freed

    def write_ref(self, revision: str, commit: str) -> None:
        """Let a branch or tag mean `commit` from now on."""
        if revision == commit:
            return
        refs = self._folder / "refs"
        place = refs / revision
        if not Path(os.path.normpath(place)).is_relative_to(refs) or place == refs:
            raise InvalidRequest(f"{revision!r} is no name of a revision.", param="revision")
        place.parent.mkdir(parents=True, exist_ok=True)
        draft = place.with_name(f"{place.name}.{uuid.uuid4().hex[:8]}.tmp")
        draft.write_text(commit)
        draft.replace(place)

    def _has_content(self, file: RemoteFile) -> bool:
        blob = self._blob(file)
        return blob is not None and _size(blob) == file.size_bytes

    def _blob(self, file: RemoteFile) -> Path | None:
        name = file.blob_id if file.sha256 is None else file.sha256
        return None if name is None else self._folder / "blobs" / name


def free_bytes(folder: Path) -> int:
    """The room for files below `folder`, which need not exist yet."""
    there = next(each for each in (folder, *folder.parents) if each.exists())
    return shutil.disk_usage(there).free


def _size(path: Path) -> int | None:
    """The size of the file that a path leads to."""
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return None
