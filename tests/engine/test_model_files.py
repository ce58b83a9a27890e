import json
import struct
from pathlib import Path

import pytest

from mlxm.engine.model_files import check_weights, read_model_config
from mlxm.errors import ModelBroken
from mlxm.types import Sampling


def write(folder: Path, name: str, content: object) -> None:
    """Put a JSON file into a model's folder."""
    (folder / name).write_text(json.dumps(content))


def safetensors(tensors: dict[str, object], size: int) -> bytes:
    """A file with these entries in its header, and as many bytes of data."""
    header = json.dumps({"__metadata__": {"format": "mlx"}, **tensors}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(size)


WHOLE = safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, 8)


def test_end_tokens_are_gathered_from_every_file(tmp_path: Path) -> None:
    """Models name the tokens that end an answer in up to four places."""
    write(tmp_path, "config.json", {"model_type": "llama", "eos_token_id": 1, "text_config": {"eos_token_id": [2]}})
    write(tmp_path, "generation_config.json", {"eos_token_id": [1, 3], "temperature": 0})
    write(tmp_path, "tokenizer_config.json", {"eos_token": {"content": "</s>", "special": True}})
    config = read_model_config(tmp_path)
    assert frozenset({1, 2, 3}) == config.eos_ids
    assert config.eos_token == "</s>"
    assert config.sampling == Sampling(temperature=0.0)


def test_sampling_is_as_its_makers_recommend(tmp_path: Path) -> None:
    """What other programs understand besides is left to them."""
    write(tmp_path, "config.json", {"model_type": "qwen2"})
    recommended = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": 0.05, "repetition_penalty": 1.05}
    write(tmp_path, "generation_config.json", {**recommended, "do_sample": True, "transformers_version": "4.37.0"})
    assert read_model_config(tmp_path).sampling == Sampling(**recommended)
    write(tmp_path, "generation_config.json", dict.fromkeys(recommended))
    assert read_model_config(tmp_path).sampling == Sampling()


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({}, None),
        ({"max_position_embeddings": 512, "n_ctx": 5}, 512),
        ({"n_positions": 1024}, 1024),
        ({"n_ctx": 77}, 77),
        ({"max_sequence_length": 78}, 78),
        ({"max_seq_len": 79}, 79),
        ({"seq_length": 80}, 80),
        ({"text_config": {"max_position_embeddings": 81}}, 81),
        ({"text_config": None, "max_position_embeddings": None}, None),
    ],
)
def test_the_context_length_goes_by_many_names(tmp_path: Path, config: dict[str, object], length: int | None) -> None:
    """Whatever a family calls it, and wherever it puts it."""
    write(tmp_path, "config.json", {"model_type": "x", **config})
    assert read_model_config(tmp_path).context_length == length


def test_config_alone_is_enough(tmp_path: Path) -> None:
    """The other files say nothing when they are not there."""
    write(tmp_path, "config.json", {"model_type": "phi-msft"})
    config = read_model_config(tmp_path)
    assert (config.architecture, config.eos_ids, config.eos_token, config.sampling) == (
        *("phi-msft", frozenset()),
        *(None, Sampling()),
    )


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", "{", "cannot be understood"),
        ("config.json", "[]", "cannot be understood"),
        ("config.json", "{}", "model_type"),
        ("config.json", "[" * 100_000, "cannot be understood"),
        ("config.json", '{"model_type": "../x"}', "names no architecture"),
        ("config.json", '{"model_type": "x", "model_file": "evil.py"}', "program of the model's own"),
        ("config.json", '{"model_type": "x", "max_position_embeddings": "many"}', "max_position_embeddings"),
        ("generation_config.json", '{"eos_token_id": "x"}', "eos_token_id"),
        ("generation_config.json", '{"top_p": 1.5}', "top_p"),
        ("tokenizer_config.json", b"\xff".decode("latin-1"), "cannot be understood"),
    ],
)
def test_a_damaged_configuration_is_named(tmp_path: Path, name: str, content: str, words: str) -> None:
    """The message says which file, and what is wrong with it."""
    write(tmp_path, "config.json", {"model_type": "llama"})
    (tmp_path / name).write_text(content, encoding="latin-1")
    with pytest.raises(ModelBroken, match=words) as caught:
        read_model_config(tmp_path)
    assert name in caught.value.message


def test_a_missing_or_unreadable_configuration_is_named(tmp_path: Path) -> None:
    """A folder without config.json holds no model."""
    with pytest.raises(ModelBroken, match=r"config\.json is missing"):
        read_model_config(tmp_path)
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ModelBroken, match=r"config\.json cannot be read"):
        read_model_config(tmp_path)


def test_whole_weights_pass(tmp_path: Path) -> None:
    """With and without an index."""
    (tmp_path / "model.safetensors").write_bytes(WHOLE)
    check_weights(tmp_path)
    write(tmp_path, "model.safetensors.index.json", {"weight_map": {"a": "model.safetensors"}})
    check_weights(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    """The index knows which files there should be; a path in it leads nowhere else."""
    (tmp_path / "model-1.safetensors").write_bytes(WHOLE)
    write(tmp_path, "model.safetensors.index.json", {"weight_map": {"a": "model-1.safetensors", "b": "../m-2.x"}})
    with pytest.raises(ModelBroken, match=f"{tmp_path}/m-2.x cannot be read"):
        check_weights(tmp_path)


def test_no_weights_at_all_are_reported(tmp_path: Path) -> None:
    """Nothing but safetensors counts as weights."""
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelBroken, match=r"no model\*\.safetensors"):
        check_weights(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 1 << 63) + b"{}",
        struct.pack("<Q", 8) + b'{"a": 5}',
        WHOLE[:-1],
        WHOLE + b"x",
        WHOLE[:20],
        safetensors({"a": {"data_offsets": [0, 1 << 40]}}, 8),
        b"PK\x03\x04 and so on, as a zip file begins",
    ],
)
def test_damaged_weights_are_named(tmp_path: Path, content: bytes) -> None:
    """A file that was cut, or is something else, never reaches mlx."""
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelBroken, match=r"model\.safetensors (is damaged|has \d+ bytes)"):
        check_weights(tmp_path)
