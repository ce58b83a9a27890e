import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlxm.device import loader
from mlxm.device.loader import load
from mlxm.errors import ModelBroken, OutOfMemory
from mlxm.tiny.weights import write_safetensors


@pytest.fixture
def copied(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the built-in model that may be damaged."""
    return shutil.copytree(tiny_folder, tmp_path / "copied")


def ignore(_done: int, _total: int) -> None:
    """For tests that do not watch."""


def change_config(folder: Path, **changes: Any) -> None:
    """Set keys of config.json; None removes one."""
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def test_a_loaded_model_says_what_it_is(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress begins at nothing and ends at everything."""
    monkeypatch.setattr(loader, "EVAL_BYTES", 1_000_000)
    reports: list[tuple[int, int]] = []
    model = load(tiny_folder, lambda done, total: reports.append((done, total)))
    total = reports[0][1]
    assert reports[0] == (0, total)
    assert reports[-1] == (total, total)
    assert len(reports) > 3
    assert sorted(reports) == reports
    assert model.config.architecture == "llama"
    assert model.vocab_size == 1792
    assert model.stop_ids == {1761, 1764}
    assert model.active_bytes >= total
    assert model.load_s > 0


def test_the_end_token_of_the_tokenizer_counts_as_well(copied: Path) -> None:
    """Named by its text, it is looked up."""
    (copied / "tokenizer_config.json").write_text('{"eos_token": "<|eom_id|>"}')
    (copied / "generation_config.json").unlink()
    assert load(copied, ignore).stop_ids == {1761, 1765}
    (copied / "tokenizer_config.json").unlink()
    assert load(copied, ignore).stop_ids == {1761}


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "no_such_architecture"},
        {"model_type": "cache"},
        {"hidden_size": 64},
        {"hidden_size": None},
        {"hidden_size": "wide"},
        {"num_hidden_layers": 5},
        {"num_hidden_layers": 3},
        {"num_attention_heads": 0},
        {"rope_scaling": {"type": "dynamic"}},
        {"quantization": {"group_size": 32}},
        {"quantization_config": {"quant_method": "compressed-tensors"}},
    ],
    ids=str,
)
def test_a_configuration_that_does_not_fit_is_explained(copied: Path, changes: dict[str, Any]) -> None:
    """Whatever mlx-lm stumbles over becomes one error that names the folder."""
    change_config(copied, **changes)
    with pytest.raises(ModelBroken, match=r"config\.json") as caught:
        load(copied, ignore)
    assert str(copied) in caught.value.message


def test_code_that_comes_with_a_model_is_never_run(copied: Path, tmp_path: Path) -> None:
    """Neither mlx-lm's way of asking for it nor that of transformers has an effect."""
    marker = tmp_path / "ran"
    (copied / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()")
    change_config(copied, auto_map={"AutoConfig": "evil.X", "AutoModelForCausalLM": "evil.X"})
    load(copied, ignore)
    change_config(copied, model_file="evil.py")
    with pytest.raises(ModelBroken, match="program of the model's own"):
        load(copied, ignore)
    assert not marker.exists()


def test_weights_without_a_number_are_refused(copied: Path) -> None:
    """Ready is only who answers."""
    count = 1792 * 128
    weights = np.full((1792, 128), np.nan, dtype=np.float32)
    assert weights.size == count
    original = (copied / "model.safetensors").read_bytes()
    header_length = int.from_bytes(original[:8], "little")
    header = json.loads(original[8 : 8 + header_length])
    header.pop("__metadata__")
    body = original[8 + header_length :]
    arrays = {
        name: np.frombuffer(body[slice(*entry["data_offsets"])], dtype=np.float32).reshape(entry["shape"])
        for name, entry in header.items()
    }
    write_safetensors(copied / "model.safetensors", {**arrays, "model.embed_tokens.weight": weights})
    with pytest.raises(ModelBroken, match="no usable numbers"):
        load(copied, ignore)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(copied: Path, name: str) -> None:
    """Before mlx looks at any of them."""
    (copied / name).unlink()
    with pytest.raises(ModelBroken, match=name.replace("model.safetensors", r"model\*\.safetensors")):
        load(copied, ignore)


def test_memory_that_runs_out_is_told_apart(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is not broken then, only too large."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("[malloc_or_wait] Unable to allocate 5 bytes.")

    monkeypatch.setattr(loader, "load_model", fail)
    with pytest.raises(OutOfMemory, match="not enough memory"):
        load(tiny_folder, ignore)
