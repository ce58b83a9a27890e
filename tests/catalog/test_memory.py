from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mlxm.catalog.cache_shape import CacheShape
from mlxm.catalog.characteristics import Characteristics, describe, describe_config
from mlxm.catalog.memory import estimate, estimate_by_name, fits, kv_bytes, largest_context
from mlxm.catalog.quantisation import Quantisation
from mlxm.testing import ARCHITECTURES, Quantise, build_models

GB = 1_000_000_000
TOKENS = 512
PATIENCE_S = 300
PLAIN = ("llama", "gemma3_text", "gpt_oss", "deepseek_v3")
WIDE = {"hidden_size": 256, "intermediate_size": 512, "moe_intermediate_size": 256}
"""Wide enough that what an allocator rounds up does not count."""
PACKED = ("qwen3", "qwen3_moe")
LLAMA_8B = describe_config(
    {
        "model_type": "llama",
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "vocab_size": 128256,
        "quantization": {"bits": 4, "group_size": 64},
    },
    parameters=8_030_000_000,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Tiny models, some of them packed."""
    place = tmp_path_factory.mktemp("models")
    plain = build_models({name: ARCHITECTURES[name] | WIDE for name in PLAIN}, place)
    packed = build_models({name: ARCHITECTURES[name] | WIDE for name in PACKED}, place, quantise=Quantise(bits=4))
    return [*plain.values(), *packed.values()]


def test_estimates_are_near_what_mlx_measures(folders: list[Path]) -> None:
    """Parameters, and weights and keys and values within 15 per cent, which is B4."""
    command = [sys.executable, Path(__file__).parent / "children" / "measure_memory.py", str(TOKENS), *folders]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for name, measured in json.loads(done.stdout).items():
        found = describe(Path(name))
        # mlx-lm's own count leaves out the attention sinks of gpt_oss.
        assert found.parameters == pytest.approx(measured["parameters"], rel=1e-4), name
        guess = estimate(found, context=TOKENS, kv_bits=32)  # tiny models compute in 32 bits
        assert guess is not None
        assert guess.basis == "headers"
        assert guess.weights_bytes == pytest.approx(measured["weights"], rel=0.15), name
        assert guess.kv_bytes == pytest.approx(measured["kv"], rel=0.15), name


def test_a_known_model_takes_what_arithmetic_says() -> None:
    """Llama 8B in four bits at 8192 tokens: 4.5 GB of weights, 1.07 GB of keys and values."""
    guess = estimate(LLAMA_8B, context=8192)
    assert guess is not None
    assert guess.basis == "parameters"
    assert guess.weights_bytes == 8_030_000_000 * 4.5 / 8
    assert guess.kv_bytes == 8192 * 32 * 2 * 8 * 128 * 2
    assert guess.total_bytes == guess.weights_bytes + guess.kv_bytes + guess.overhead_bytes
    assert 0 < guess.overhead_bytes < GB // 2
    assert guess.context == 8192


def test_the_model_s_own_limit_is_the_context_unless_another_is_given() -> None:
    """It is what the model can be asked for."""
    guess = estimate(LLAMA_8B)
    assert guess is not None
    assert guess.context == 131072
    assert guess.kv_bytes == 131072 * 131072


@pytest.mark.parametrize(
    ("known", "size_bytes", "weights", "basis"),
    [
        (Characteristics(weights_bytes=7, size_bytes=9), 8, 7, "headers"),
        (Characteristics(size_bytes=9), 8, 8, "files"),
        (Characteristics(size_bytes=9), None, 9, "files"),
        (Characteristics(parameters=1600, parameters_from="hub", dtype="bfloat16"), None, 3200, "parameters"),
        (Characteristics(parameters=7 * GB, parameters_from="name"), None, 4 * GB, "name"),
        (Characteristics(parameters=7 * GB, parameters_from="name", dtype="bfloat16"), 0, 14.5 * GB, "name"),
        (
            Characteristics(parameters=800, parameters_from="hub", quantisation=Quantisation(bits=8)),
            None,
            800,
            "parameters",
        ),
    ],
)
def test_weights_come_from_the_best_source(
    known: Characteristics, size_bytes: int | None, weights: int, basis: str
) -> None:
    """Headers, then files, then parameters; the name at the very last."""
    guess = estimate(known, size_bytes)
    assert guess is not None
    assert (guess.weights_bytes, guess.basis) == (weights, basis)
    assert guess.kv_bytes is None
    assert guess.total_bytes == guess.weights_bytes + guess.overhead_bytes


@pytest.mark.parametrize(
    "known", [Characteristics(), Characteristics(parameters=800, parameters_from="hub"), describe_config({})]
)
def test_where_nothing_is_known_nothing_is_estimated(known: Characteristics) -> None:
    """Not even with a context."""
    assert estimate(known, None, 4096) is None
    assert largest_context(known, GB) is None


@pytest.mark.parametrize(
    ("name", "total"),
    [("org/Words-3B", 2 * GB), ("org/Words-7B", 4 * GB), ("org/Words-7B-8bit", 7.5 * GB), ("org/words", None)],
)
def test_a_name_is_the_last_resort(name: str, total: int | None) -> None:
    """And says that it is."""
    guess = estimate_by_name(name)
    if total is None:
        assert guess is None
    else:
        assert guess is not None
        assert (guess.total_bytes, guess.basis, guess.kv_bytes) == (total, "name", None)


def test_a_window_is_full_at_its_length() -> None:
    """Beyond it only the other layers grow, and a state does not grow at all."""
    cache = CacheShape(
        full_layers=1, window_layers=5, window=512, values_per_token=10, window_values_per_token=20, state_values=7
    )
    assert kv_bytes(cache, 0) == 7 * 4
    assert kv_bytes(cache, 512) == (512 * 10 + 512 * 5 * 20) * 2 + 28
    assert kv_bytes(cache, 1024) - kv_bytes(cache, 512) == 512 * 10 * 2


def test_packed_keys_and_values_carry_their_scales() -> None:
    """Four bits take four and a half."""
    cache = CacheShape(full_layers=1, values_per_token=64)
    assert (kv_bytes(cache, 100), kv_bytes(cache, 100, kv_bits=8), kv_bytes(cache, 100, kv_bits=4)) == (
        12_800,
        6_800,
        3_600,
    )


@pytest.mark.parametrize("budget", [6 * GB, 8 * GB, 12 * GB])
def test_the_largest_context_is_the_largest(budget: int) -> None:
    """One token more does not fit."""
    longest = largest_context(LLAMA_8B, budget)
    assert longest is not None
    assert 0 < longest < 131072
    inside, beyond = (estimate(LLAMA_8B, context=tokens) for tokens in (longest, longest + 1))
    assert inside is not None
    assert beyond is not None
    assert fits(inside.total_bytes, budget)
    assert not fits(beyond.total_bytes, budget)


def test_the_largest_context_has_two_ends() -> None:
    """Nothing where the weights do not fit, and never more than the model can see."""
    assert largest_context(LLAMA_8B, GB) == 0
    assert largest_context(LLAMA_8B, 100 * GB) == 131072
    assert largest_context(LLAMA_8B, 100 * GB, kv_bits=4) == 131072
    assert largest_context(Characteristics(cache=CacheShape(full_layers=1, values_per_token=1)), GB) is None


def test_a_model_that_keeps_nothing_takes_nothing_for_its_context() -> None:
    """An embedding model reads a text at once."""
    found = describe_config({"architectures": ["BertModel"], "model_type": "bert", "hidden_size": 384}, size_bytes=GB)
    guess = estimate(found, context=512)
    assert guess is not None
    assert guess.kv_bytes == 0
