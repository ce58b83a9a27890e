"""Tiny models written as files by code alone: tokenizers, weights, and the built-in model `mlxm/tiny`.

Nothing here needs mlx, transformers or tokenizers; NumPy is imported only when weights are written.
"""

from mlxm.tiny.builtin import BUILTIN_NAME, BUILTIN_NOTE, BUILTIN_REVISION, build_builtin

__all__ = ["BUILTIN_NAME", "BUILTIN_NOTE", "BUILTIN_REVISION", "build_builtin"]
