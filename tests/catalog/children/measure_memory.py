"""Prints what the models in the given folders really take: their parameters, and mlx's memory before and after use."""

from __future__ import annotations

import gc
import json
import sys
import warnings
from pathlib import Path

from mlxm.device.blas import open_blas

open_blas()
warnings.simplefilter("ignore")

import mlx.core as mx  # noqa: E402  (after the BLAS)
from mlx_lm.models.cache import make_prompt_cache  # noqa: E402
from mlx_lm.utils import get_total_parameters, load_model  # noqa: E402


def measure(folder: Path, tokens: int) -> dict[str, int]:
    """Load the model in `folder`, let it read so many tokens, and count."""
    gc.collect()
    before = mx.get_active_memory()
    model, _ = load_model(folder)
    mx.eval(model.parameters())
    loaded = mx.get_active_memory()
    cache = make_prompt_cache(model)
    for step in (tokens - 1, 1):
        mx.eval(model(mx.array([[1] * step]), cache=cache))
    mx.eval([layer.state for layer in cache])
    gc.collect()
    kept = mx.get_active_memory()
    return {"parameters": get_total_parameters(model), "weights": loaded - before, "kv": kept - loaded}


print(json.dumps({name: measure(Path(name), int(sys.argv[1])) for name in sys.argv[2:]}))  # noqa: T201
