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


PLAIN = {"num_hidden_layers": 4, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            {"model_type": "granitemoehybrid", "layer_types": ["attention"] * 4},
            CacheShape(full_layers=4, values_per_token=64),
        ),
        (
            {
                "model_type": "jamba",
                "layers_block_type": ["mamba", "attention", "mamba", "mamba"],
                "mamba_expand": 2,
                "mamba_d_conv": 4,
                "mamba_d_state": 16,
            },
            CacheShape(full_layers=1, values_per_token=64, state_values=3 * 128 * 19),
        ),
        (
            {
                "model_type": "gemma4_text",
                "layer_types": ["sliding_attention", "full_attention"] * 2,
                "sliding_window": 8,
                "head_dim": 16,
                "global_head_dim": 32,
                "attention_k_eq_v": True,
                "num_global_key_value_heads": 1,
            },
            CacheShape(full_layers=2, window_layers=2, window=8, values_per_token=64, window_values_per_token=64),
        ),
        (
            {"model_type": "exaone4", "sliding_window_pattern": "LLLG", "sliding_window": 8},
            CacheShape(full_layers=1, window_layers=3, window=8, values_per_token=64, window_values_per_token=64),
        ),
        (
            {"model_type": "gpt_oss", "sliding_window": 8},
            CacheShape(full_layers=2, window_layers=2, window=8, values_per_token=64, window_values_per_token=64),
        ),
        ({"model_type": "gemma3_text"}, CacheShape(full_layers=4, values_per_token=4 * 256)),
        ({"model_type": "unheard_of"}, CacheShape(full_layers=4, values_per_token=64)),
        ({"model_type": "unheard_of", "kv_lora_rank": 8}, None),
        ({"model_type": "unheard_of", "ssm_cfg": {}}, None),
        ({"model_type": "granitemoehybrid", "layer_types": ["mamba"] * 4}, None),
        ({"model_type": "deepseek_v3"}, None),
        ({"model_type": "deepseek_v2"}, None),
        ({"model_type": "llama", "num_hidden_layers": None}, None),
        ({"model_type": "llama", "num_hidden_layers": 10**15}, None),
        ({"model_type": "llama", "num_attention_heads": 0}, None),
        ({}, None),
    ],
)
def test_variants_and_gaps(config: dict[str, object], expected: CacheShape | None) -> None:
    """Other ways of saying the same, and sizes that are missing or absurd."""
    assert describe_config({"architectures": ["XForCausalLM"], **PLAIN, **config}).cache == expected
