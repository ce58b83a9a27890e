"""Adds the one MLX library that this build asks for to the dependencies.

On Linux mlx-cpu and mlx-cuda-* all own mlx/lib/libmlx.so, and an extra could only add a second owner. So the choice
is made while the wheel is built: `MLX_BACKEND=cuda13 pip install .`
"""

from __future__ import annotations

import os
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

MLX_VERSIONS = ">=0.32.4,<0.33"
BACKENDS = ("cpu", "cuda12", "cuda13")


class MlxBackend(MetadataHookInterface):
    """Completes `dependencies`; the others stand in pyproject.toml under tool.hatch.metadata.hooks.custom."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Put MLX first, with exactly one backend."""
        backend = os.environ.get("MLX_BACKEND", "cpu")
        if backend not in BACKENDS:
            raise ValueError(f"MLX_BACKEND is {backend!r}, but must be one of {', '.join(BACKENDS)}")
        metadata["dependencies"] = [
            f"mlx{MLX_VERSIONS}; platform_system == 'Darwin'",
            f"mlx[{backend}]{MLX_VERSIONS}; platform_system == 'Linux'",
            *self.config["dependencies"],
        ]
