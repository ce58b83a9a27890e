from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlxm.catalog.characteristics import describe
from mlxm.catalog.headers import Tensor, weigh
from mlxm.catalog.quantisation import Quantisation
from mlxm.errors import ModelBroken
from tests.catalog.folders import CONFIG, PLAIN, SIZES, Shapes, model_files, safetensors, write_folder


def weighed(shapes: Shapes, quantisation: Quantisation | None = None, layers: dict[str, Any] | None = None) -> Any:
    """What tensors of these shapes weigh."""
    tensors = {name: Tensor(dtype, shape, 0, 1) for name, (dtype, shape) in shapes.items()}
    return weigh(("model.safetensors",), tensors, quantisation, layers or {})


def packed(bits: int, rows: int = 8, columns: int = 128, group_size: int = 64) -> Shapes:
    """A linear layer as mlx packs it."""
    return {
        "layer.weight": ("U32", (rows, columns * bits // 32)),
        "layer.scales": ("BF16", (rows, columns // group_size)),
        "layer.biases": ("BF16", (rows, columns // group_size)),
        "norm.weight": ("BF16", (10,)),
    }


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_packed_numbers_are_counted_one_by_one(bits: int) -> None:
    """Whatever the width, and without scales and biases."""
    found = weighed(packed(bits), Quantisation(bits=bits, group_size=64))
    assert (found.parameters, found.is_packed, found.dtype) == (8 * 128 + 10, True, "bfloat16")


def test_a_layer_with_settings_of_its_own_is_counted_by_them() -> None:
    """Mixed models keep some layers wider."""
    found = weighed(packed(8), Quantisation(bits=4, group_size=64), {"layer": {"bits": 8, "group_size": 64}})
    assert found.parameters == 8 * 128 + 10


def test_without_settings_the_scales_tell_the_count() -> None:
    """One for each group of 64."""
    assert weighed(packed(4)).parameters == 8 * 128 + 10


@pytest.mark.parametrize(
    ("shapes", "quantisation", "parameters"),
    [
        ({"l.qweight": ("I32", (16, 8)), "l.qzeros": ("I32", (1, 1)), "l.scales": ("F16", (1, 8))}, "gptq", 1024),
        ({"l.qweight": ("I32", (16, 8)), "l.qzeros": ("I32", (1, 1)), "l.scales": ("F16", (1, 8))}, "awq", 1024),
        ({"l.weight": ("U8", (512, 1)), "l.weight.absmax": ("F32", (16,))}, "bitsandbytes", 1024),
        ({"e.gate_blocks": ("U8", (4, 8, 16)), "e.gate_scales": ("U8", (4, 8))}, "mxfp4", 1024),
        ({"l.weight": ("F8_E4M3", (32, 32)), "l.weight_scale_inv": ("F32", (1, 1))}, "fp8", 1024),
        ({"l.weight": ("F16", (32, 32))}, None, 1024),
    ],
)
def test_other_ways_of_packing_are_counted_too(shapes: Shapes, quantisation: str | None, parameters: int) -> None:
    """Models that were not converted for MLX say how large they are all the same."""
    settings = None if quantisation is None else Quantisation(bits=8 if quantisation == "fp8" else 4, mode=quantisation)
    found = weighed(shapes, settings)
    assert found.parameters == parameters
    assert found.is_packed is (quantisation is not None)


def test_a_folder_tells_what_its_weights_tell(tmp_path: Path) -> None:
    """Parameters and dtype from the headers, sizes to the byte."""
    files = model_files()
    found = describe(write_folder(tmp_path, files))
    assert (found.parameters, found.parameters_from) == (128 * 64 + 64, "headers")
    assert found.weights_bytes == (128 * 64 + 64) * SIZES["BF16"]
    assert found.size_bytes == sum(map(len, files.values()))
    assert (found.dtype, found.quantisation) == ("bfloat16", None)
    assert found.tool_use.answer == "yes"


def test_the_dtype_of_the_weights_counts_and_not_that_of_the_configuration(tmp_path: Path) -> None:
    """Converters often leave the old one there."""
    shapes = {name: ("F16", shape) for name, (_, shape) in PLAIN.items()}
    assert describe(write_folder(tmp_path, model_files(shapes=shapes))).dtype == "float16"


def test_an_image_model_without_its_image_part_is_a_text_model(tmp_path: Path) -> None:
    """Conversions for text keep the configuration of the whole and drop the weights."""
    config = {**CONFIG, "vision_config": {"model_type": "siglip_vision_model"}}
    text = describe(write_folder(tmp_path / "text", model_files(config)))
    assert (text.kind, text.kind_reason) == (
        "text",
        "config.json has vision_config, but the weights hold no vision part",
    )
    shapes = {**PLAIN, "vision_tower.patch_embed.weight": ("BF16", (4, 4))}
    assert describe(write_folder(tmp_path / "whole", model_files(config, shapes))).kind == "vision"


def test_pooling_files_make_an_embedding_model(tmp_path: Path) -> None:
    """Its config.json is that of the model it was made from."""
    files = model_files() | {"modules.json": b"[]", "1_Pooling/config.json": b"{}"}
    found = describe(write_folder(tmp_path, files))
    assert found.kind == "embedding"
    assert found.kv_bytes_per_token == 0


def test_tags_of_the_card_count_offline(tmp_path: Path) -> None:
    """The card lies beside the weights."""
    card = b"---\nlibrary_name: mlx\ntags:\n- mlx\n- tool-use\npipeline_tag: text-generation\n---\n# A model\n"
    found = describe(write_folder(tmp_path, model_files() | {"README.md": card}))
    assert (found.tool_use.answer, found.tool_use.tier, found.tool_use.reason) == ("yes", "tags", "tagged tool-use")


def test_shards_are_weighed_together(tmp_path: Path) -> None:
    """And one that is missing is named."""
    files = model_files()
    del files["model.safetensors"]
    for place, (name, shape) in enumerate(PLAIN.items(), 1):
        files[f"model-0000{place}-of-00002.safetensors"] = safetensors({name: shape})
    folder = write_folder(tmp_path, files)
    assert describe(folder).parameters == 128 * 64 + 64
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelBroken, match="model-00002-of-00002"):
        describe(folder)
    assert describe(folder, check_weights=False).parameters is None


def test_a_folder_without_weights_is_described_by_its_configuration(tmp_path: Path) -> None:
    """It is what a model on its way looks like."""
    files = model_files()
    del files["model.safetensors"]
    found = describe(write_folder(tmp_path, files), name="org/Model-7B")
    assert (found.kind, found.parameters, found.parameters_from) == ("text", 7_000_000_000, "name")
    assert found.dtype == "bfloat16"


def test_a_folder_without_a_configuration_is_broken(tmp_path: Path) -> None:
    """Nothing can be said of it."""
    with pytest.raises(ModelBroken, match=r"config\.json is missing"):
        describe(tmp_path)


@pytest.mark.parametrize(
    "files",
    [
        {"chat_template.jinja": b"{% if tools %}{% endif %}<think>"},
        {"chat_template.json": b'{"chat_template": "{% if tools %}{% endif %}<think>"}'},
        {"tokenizer_config.json": b'{"chat_template": [{"name": "tool_use", "template": "{{ tools }}<think>"}, 3]}'},
    ],
)
def test_a_chat_template_is_found_wherever_its_maker_put_it(tmp_path: Path, files: dict[str, bytes]) -> None:
    """Three places are in use."""
    found = describe(write_folder(tmp_path, model_files({**CONFIG, "model_type": "llama"}) | files))
    assert (found.tool_use.tier, found.tool_use.answer) == ("template", "yes")
    assert (found.reasoning.tier, found.reasoning.answer) == ("template", "yes")
