from __future__ import annotations

from typing import Any

import pytest

from mlxm.catalog.characteristics import describe_config
from mlxm.catalog.parameters import parameters_of_name
from mlxm.catalog.quantisation import Quantisation


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"quantization": {"bits": 4, "group_size": 32}}, Quantisation(bits=4, group_size=32)),
        ({"quantization": {"mode": "nvfp4"}}, Quantisation(bits=4, group_size=16, mode="nvfp4")),
        ({"quantization": {"mode": "mystery"}}, Quantisation(bits=None, mode="mystery")),
        ({"quantization": {"bits": "four", "group_size": -1}}, Quantisation(bits=4, group_size=64)),
        ({"quantization_config": {"bits": 8, "group_size": 64}}, Quantisation(bits=8, group_size=64)),
        ({"text_config": {"quantization": {"bits": 6, "group_size": 64}}}, Quantisation(bits=6, group_size=64)),
        ({"quantization_config": {"quant_method": "fp8"}}, Quantisation(bits=8, mode="fp8")),
        ({"quantization_config": {"quant_method": "bitnet"}}, Quantisation(bits=2, mode="bitnet")),
        (
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
            Quantisation(bits=8, mode="bitsandbytes"),
        ),
        (
            {"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16}},
            Quantisation(bits=4, group_size=16, mode="modelopt"),
        ),
        (
            {
                "quantization_config": {
                    "quant_method": "compressed-tensors",
                    "config_groups": {"group_0": {"weights": {"num_bits": 4}}},
                }
            },
            Quantisation(bits=4, mode="compressed-tensors"),
        ),
        ({"quantization_config": {"quant_method": "hqq", "config_groups": 3}}, Quantisation(bits=None, mode="hqq")),
        ({"quantization": {}}, None),
        ({"quantization": None, "quantization_config": None}, None),
        ({"model_type": "llama", "name": "it-4bit"}, None),
    ],
)
def test_every_way_of_packing_is_read(config: dict[str, Any], expected: Quantisation | None) -> None:
    """From the key that mlx writes, or the one that everybody else writes."""
    assert describe_config(config, name="org/words-4bit").quantisation == expected


@pytest.mark.parametrize(
    ("name", "expected", "dtype"),
    [
        ("mlx-community/Qwen3-4B-4bit", Quantisation(bits=4), None),
        ("mlx-community/Qwen3-4B-8-bit", Quantisation(bits=8), None),
        ("mlx-community/gpt-oss-20b-MXFP4-Q8", Quantisation(bits=4, group_size=32, mode="mxfp4"), None),
        ("mlx-community/Qwen3-4B-bf16", None, "bfloat16"),
        ("mlx-community/Qwen3-4B-fp16", None, "float16"),
        ("mlx-community/Qwen3-4B", None, None),
        ("mlx-community/14bit-music", None, None),
    ],
)
def test_a_name_tells_where_there_is_no_configuration(name: str, expected: Quantisation | None, dtype: str) -> None:
    """It is what a search shows until more is known."""
    found = describe_config({}, name=name)
    assert (found.quantisation, found.dtype) == (expected, dtype)


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        ({"torch_dtype": "bfloat16"}, "bfloat16"),
        ({"dtype": "torch.float16", "torch_dtype": "float32"}, "float16"),
        ({"text_config": {"dtype": "float32"}}, "float32"),
        ({"torch_dtype": 7}, None),
    ],
)
def test_the_dtype_is_read_under_both_of_its_names(config: dict[str, Any], dtype: str | None) -> None:
    """Newer configurations have renamed it."""
    assert describe_config(config, name="org/words-fp16").dtype == dtype


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("org/Mistral-7B-Instruct", 7_000_000_000),
        ("org/Qwen3-30B-A3B-4bit", 30_000_000_000),
        ("org/Mixtral-8x7B", 56_000_000_000),
        ("org/gemma-3-270m-it", 270_000_000),
        ("org/Qwen3-0.6B", 600_000_000),
        ("org/Phi-3.5-mini-4bit", None),
        ("org/words", None),
    ],
)
def test_a_name_tells_the_parameters(name: str, parameters: int | None) -> None:
    """The total of a mixture, and no bits taken for billions."""
    assert parameters_of_name(name) == parameters


def test_the_hub_counts_better_than_the_name() -> None:
    """It has read the headers."""
    found = describe_config({"model_type": "llama"}, name="org/Words-7B", parameters=6_738_415_616)
    assert (found.parameters, found.parameters_from) == (6_738_415_616, "hub")
