"""Prints, for every tiny architecture, how many numbers mlx-lm really keeps after so many tokens.

Buffers grow in steps of 256, and a window is cut back when a single token comes: so lengths are multiples of 256, and
the last token of each comes alone.
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

from mlxm.device.blas import open_blas

open_blas()
warnings.simplefilter("ignore")

import mlx.core as mx  # noqa: E402  (after the BLAS)
from mlx.utils import tree_flatten  # noqa: E402
from mlx_lm.models.cache import make_prompt_cache  # noqa: E402
from mlx_lm.utils import _get_classes  # noqa: E402

from mlxm.testing import ARCHITECTURES  # noqa: E402


def kept(config: dict[str, Any], lengths: list[int]) -> list[int]:
    """The numbers in all caches of a model after so many tokens."""
    model_class, args_class = _get_classes(config)
    model = model_class(args_class.from_dict(config))
    cache = make_prompt_cache(model)
    done, counted = 0, []
    for length in lengths:
        for step in (length - done - 1, 1):
            mx.eval(model(mx.array([[1] * step]), cache=cache))
        done = length
        arrays = [array for _, array in tree_flatten([layer.state for layer in cache]) if isinstance(array, mx.array)]
        counted.append(sum(array.size for array in arrays))
    return counted


asked = [int(length) for length in sys.argv[1:]]
print(json.dumps({name: kept(dict(config), asked) for name, config in ARCHITECTURES.items()}))  # noqa: T201
