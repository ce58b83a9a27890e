"""Removing folders in one step for whoever looks, however long their files take to go."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

from mlxm.catalog.names import inside
from mlxm.errors import Forbidden, StoreReadOnly

PREFIX = ".mlxm-trash-"


def remove_folder(folder: Path, root: Path) -> None:
    """Remove a folder that is inside `root` itself, and not where links lead; Forbidden for any other.

    It is moved aside first: what is killed half way leaves a name that no one takes for a model.
    """
    if not inside(root, folder) or folder.resolve() == root.resolve():
        raise Forbidden(f"{folder} is not inside {root}: it is left as it is.")
    try:
        if folder.is_symlink():
            folder.unlink()
            return
        aside = root / f"{PREFIX}{uuid.uuid4().hex}"
        folder.rename(aside)
        shutil.rmtree(aside)
    except OSError as error:
        raise StoreReadOnly(
            f"{folder} cannot be removed: {error.strerror}.", hint="Make it writable for this user."
        ) from error


def count_bytes(folder: Path) -> int:
    """What the files in a folder take; a link takes nothing."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in files)
