"""The built-in model `mlxm/tiny`: a few megabytes of random weights, made on the user's machine when first used.

It takes the whole real path without a download; what it says is gibberish, and it says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from mlxm.tiny.folders import is_whole, seal_and_place, workshop

BUILTIN_NAME: Final = "mlxm/tiny"
BUILTIN_NOTE: Final = "mlxm/tiny speaks gibberish: its weights are random, for trying things out."
BUILTIN_REVISION: Final = "1"
"""Goes up whenever a byte of the built-in model changes."""


def build_builtin(home: Path) -> Path:
    """The folder of the built-in model under `home`, built first when it is missing or damaged.

    Raises StoreReadOnly, DiskFull or StoreError when it has to be built and cannot be.
    """
    target = home / "models" / f"tiny-{BUILTIN_REVISION}"
    if is_whole(target):
        return target
    # NumPy comes with this import, and is needed only when there is something to build.
    from mlxm.tiny.builtin_files import write_builtin

    with workshop(target.parent) as scratch:
        if not is_whole(target):
            built = scratch / target.name
            built.mkdir()
            write_builtin(built, revision=BUILTIN_REVISION)
            seal_and_place(built, target)
    return target
