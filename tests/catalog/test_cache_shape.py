from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mlxm.catalog.cache_shape import CacheShape
from mlxm.catalog.characteristics import describe_config
from mlxm.testing import ARCHITECTURES

STEP = 256
"""By how many tokens mlx-lm lets its buffers grow."""
LENGTHS = (STEP, 2 * STEP)
PATIENCE_S = 300
NOT_KNOWN = {"afm7", "kimi_linear", "mimo_v2_flash", "rwkv7"}
"""Their caches are said to be unknown, which is no mistake."""
ODD = {"gpt_neox"}
"""The tiny configuration names KV heads, which this architecture does not have."""


@pytest.fixture(scope="module")
def measured() -> dict[str, list[int]]:
    """How many numbers mlx-lm keeps for a sequence of each length, by architecture."""
    command = [sys.executable, Path(__file__).parent / "children" / "measure_caches.py", *map(str, LENGTHS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    counted: dict[str, list[int]] = json.loads(done.stdout)
    return counted


def numbers(cache: CacheShape, tokens: int) -> int:
    """What the shape says is kept."""
    windowed = 0 if cache.window is None else cache.window_layers * min(tokens, cache.window)
    full = cache.full_layers * cache.values_per_token * tokens
    return full + windowed * cache.window_values_per_token + cache.state_values


@pytest.mark.parametrize("name", sorted(ARCHITECTURES.keys() - NOT_KNOWN - ODD))
def test_the_shape_is_what_mlx_lm_keeps(measured: dict[str, list[int]], name: str) -> None:
    """Number by number, in every architecture that mlxm claims to run."""
    cache = describe_config(ARCHITECTURES[name]).cache
    assert cache is not None
    # llama4 drops what is behind its window only to make room for one more step.
    spare = STEP * cache.window_layers * cache.window_values_per_token if name == "llama4" else 0
    assert [numbers(cache, length) + spare for length in LENGTHS] == measured[name]


@pytest.mark.parametrize("name", sorted(NOT_KNOWN))
def test_a_cache_that_is_not_known_is_not_made_up(name: str) -> None:
    """Nothing is better than a number that would be wrong."""
    found = describe_config(ARCHITECTURES[name])
    assert found.cache is None
    assert found.kv_bytes_per_token is None
