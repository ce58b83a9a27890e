"""A fast BLAS under mlx on Linux, where its wheel brings netlib's reference one, about thirty times slower.

A library that is loaded globally before mlx answers mlx's calls in its place. This module imports no mlx.
"""

from __future__ import annotations

import ctypes
import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import msgspec

from mlxm.errors import ConfigInvalid

AUTO = "auto"
NONE = "none"
_THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")


class Blas(msgspec.Struct, frozen=True):
    """The library that answers matrix products; `path` is None where mlx's own does."""

    name: str
    path: str | None
    is_reference: bool = False


def open_blas(choice: str = AUTO, *, num_threads: int | None = None) -> Blas | None:
    """Load a BLAS for mlx; call it before mlx is imported. None where mlx needs no help.

    `choice` is `auto`, `none` (leave mlx's own in place) or a library's path; raises ConfigInvalid for a bad path.
    `num_threads` None leaves the number to the library and to the environment.
    """
    if sys.platform != "linux":
        return None
    if num_threads is not None:
        os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(num_threads)))
    if choice == NONE:
        return _mlx_own()
    if choice != AUTO:
        return _open_named(choice)
    return next((blas for name, path in _candidates() if (blas := _open(name, path))), _mlx_own())


def _open_named(path: str) -> Blas:
    blas = _open(Path(path).name, path)
    if blas is None:
        raise ConfigInvalid(f"The BLAS {path} cannot be loaded.", hint="`mlxm config unset worker.blas` finds one.")
    return blas


def _candidates() -> Iterator[tuple[str, str]]:
    """Names and paths to try, the best first; the copy that another package keeps for itself is the last resort."""
    yield "OpenBLAS", "libopenblas.so.0"
    packages = Path(sysconfig.get_path("platlib"))
    for folder in (packages, Path(sys.prefix, "lib")):
        yield from (("MKL", str(path)) for path in sorted(folder.glob("libmkl_rt.so*")))
    for path in sorted((packages / "opencv_python.libs").glob("libopenblas*")):
        yield "OpenBLAS (opencv-python)", str(path)


def _open(name: str, path: str) -> Blas | None:
    try:
        ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return None  # not installed, or not for this machine: the next candidate
    return Blas(name, path)


def _mlx_own() -> Blas:
    """What mlx was built with: its wheels bundle the reference BLAS, other builds link what the system has."""
    bundled = Path(sysconfig.get_path("platlib")).glob("mlx*.libs/libblas*")
    return Blas("netlib reference", None, is_reference=True) if any(bundled) else Blas("mlx's own", None)
