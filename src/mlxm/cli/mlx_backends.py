"""Whether exactly one MLX library is installed.

mlx-cpu and mlx-cuda-* each bring mlx/lib/libmlx.so: the last of two installed wins, and removing either breaks MLX.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.metadata import Distribution, distributions

from mlxm.cli.checks import Check

_BACKEND = re.compile(r"mlx-(cpu|metal|cuda(-\d+)?)")


def find_mlx_backends(installed: Iterable[Distribution] | None = None) -> tuple[str, ...]:
    """The names of the distributions that own MLX's library; this interpreter's unless others are given."""
    candidates = distributions() if installed is None else installed
    names = {distribution.metadata["Name"].replace("_", "-").lower() for distribution in candidates}
    return tuple(sorted(name for name in names if _BACKEND.fullmatch(name)))


def check_mlx_backends(names: tuple[str, ...]) -> Check:
    """Whether MLX has one library, and the way back to one."""
    if len(names) == 1:
        return Check(name="mlx backend", status="ok", detail=names[0])
    if not names:
        return Check(name="mlx backend", status="fail", detail="none is installed", fix="pip install 'mlx[cpu]'")
    *others, wanted = names
    return Check(
        name="mlx backend",
        status="fail",
        detail=f"{' and '.join(names)} overwrite each other's library",
        fix=f"pip uninstall -y {' '.join(names)} && pip install {wanted}  (or {', '.join(others)}, but one alone)",
    )
