from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlxm.catalog.local import LocalModel, LocalModels, Roots
from tests.catalog.folders import COMMIT, CONFIG, PLAIN, model_files, safetensors, write_cached, write_folder

SHARD = "model-0000{}-of-00003.safetensors"
INDEX = "model.safetensors.index.json"
Damage = Callable[[Path], object]


def sharded() -> dict[str, bytes]:
    """A whole model in three weight files."""
    files = model_files()
    del files["model.safetensors"]
    for place in (1, 2, 3):
        files[SHARD.format(place)] = safetensors({f"layer.{place}.weight": ("BF16", (4, 4))})
    weight_map = {f"layer.{place}.weight": SHARD.format(place) for place in (1, 2, 3)}
    return files | {INDEX: json.dumps({"metadata": {}, "weight_map": weight_map}).encode()}


def only(models: LocalModels) -> LocalModel:
    """The one model that there is."""
    (model,) = models.list()
    return model


def blob_of(snapshot: Path, name: str) -> Path:
    """The file behind a link."""
    return (snapshot / name).resolve()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda it: (it / SHARD.format(2)).unlink(), f"1 weight file is missing: {SHARD.format(2)}"),
        (lambda it: [(it / name).unlink() for name in (SHARD.format(3), INDEX)], f"missing: {SHARD.format(3)}"),
        (lambda it: [path.unlink() for path in it.glob("model*safetensors")], "3 weight files are missing"),
        (lambda it: [path.unlink() for path in it.glob("model*")], "its weights are missing"),
        (lambda it: blob_of(it, SHARD.format(1)).unlink(), f"links to nothing: {SHARD.format(1)}"),
        (lambda it: blob_of(it, "config.json").unlink(), "links to nothing: config.json"),
        (lambda it: blob_of(it, "tokenizer.json").unlink(), "links to nothing: tokenizer.json"),
        (lambda it: (it / "config.json").unlink(), "config.json is missing"),
        (lambda it: (it / "more").symlink_to("more"), "links to nothing: more"),
        (lambda it: (it / "model.safetensors.part").write_bytes(b""), "came in part: model.safetensors.part"),
        (lambda it: (it / "../../blobs/ab12.9f.incomplete").write_bytes(b"x"), "1 file came in part"),
        (lambda it: (it / "../../blobs/ab12.incomplete").write_bytes(b"x"), "1 file came in part"),
        (
            lambda it: [(it / f"../../blobs/ab{n}.incomplete").write_bytes(b"x") for n in (1, 2)],
            "2 files came in part",
        ),
    ],
)
def test_an_incomplete_snapshot_is_never_ready(models: LocalModels, roots: Roots, damage: Damage, reason: str) -> None:
    """Whatever is missing, and what is missing is said."""
    snapshot = write_cached(roots.hub_cache, "org/model", sharded())
    assert only(models).state == "ready"
    damage(snapshot)
    model = only(models)
    assert model.state == "incomplete"
    assert reason in (model.state_reason or "")
    assert not model.runnable
    assert model.runnable_reason == "it is incomplete"
    assert model.disk_bytes > 0
    assert models.find("org/model") == model


def test_an_incomplete_model_is_described_as_far_as_it_is_there(models: LocalModels, roots: Roots) -> None:
    """Its configuration comes first."""
    files = sharded()
    del files[SHARD.format(2)]
    write_cached(roots.hub_cache, "org/model", files)
    found = only(models).characteristics
    assert found is not None
    assert (found.kind, found.parameters) == ("text", None)


def test_parts_of_a_file_that_has_come_since_are_no_hindrance(models: LocalModels, roots: Roots) -> None:
    """A download that was killed leaves its part behind, and the next one begins anew."""
    snapshot = write_cached(roots.hub_cache, "org/model", model_files())
    blob = blob_of(snapshot, "model.safetensors")
    blob.with_name(f"{blob.name}.0a1b2c3d.incomplete").write_bytes(b"x" * 100)
    model = only(models)
    assert (model.state, model.disk_bytes - model.size_bytes) == ("ready", 100)


def test_a_commit_of_which_nothing_has_come_is_incomplete(models: LocalModels, roots: Roots) -> None:
    """Older ones may be here, and are found when they are asked for."""
    write_cached(roots.hub_cache, "org/model", model_files())
    (roots.hub_cache / "models--org--model" / "refs" / "main").write_text("f" * 40)
    model = only(models)
    assert (model.state, model.state_reason, model.revision) == ("incomplete", "fffffff has not been fetched", "f" * 40)
    assert model.size_bytes == 0 < model.disk_bytes
    assert models.find("org/model", revision=COMMIT).state == "ready"


def test_an_update_on_its_way_says_that_the_old_one_is_here(models: LocalModels, roots: Roots) -> None:
    """Nobody has to fetch what they have."""
    write_cached(roots.hub_cache, "org/model", model_files())
    write_cached(roots.hub_cache, "org/model", {"config.json": model_files()["config.json"]}, commit="f" * 40)
    assert only(models).state_reason == "its weights are missing; other revisions are here"


def test_parts_alone_are_an_incomplete_model(models: LocalModels, roots: Roots) -> None:
    """They take room, so they are listed."""
    write_folder(roots.hub_cache / "models--org--model" / "blobs", {"ab.incomplete": b"x" * 10})
    model = only(models)
    assert (model.state, model.state_reason) == ("incomplete", "nothing but parts of files is here")
    assert (model.revision, model.disk_bytes) == (None, 10)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"Model-Q4_K_M.gguf": b"GGUF"}, "its weights are GGUF; mlxm runs safetensors only"),
        ({"pytorch_model.bin": b"x"}, "its weights are PyTorch; mlxm runs safetensors only"),
        ({"weights.npz": b"x", "m.onnx": b"x"}, "its weights are NumPy and ONNX; mlxm runs safetensors only"),
        ({"w.safetensors": b"x"}, "it has no model*.safetensors, which is what mlx-lm loads"),
        ({"adapter_config.json": b"{}", "adapters.safetensors": b"x"}, "it is an adapter for another model"),
        ({"model_index.json": b"{}", "unet/x.safetensors": b"x"}, "it is a pipeline for images, not a language model"),
    ],
)
@pytest.mark.parametrize("has_config", [True, False])
def test_what_mlx_cannot_load_is_whole_but_not_runnable(
    models: LocalModels, roots: Roots, files: dict[str, bytes], reason: str, *, has_config: bool
) -> None:
    """Nobody should fetch it again because of that."""
    if has_config:
        files = files | {"config.json": json.dumps(CONFIG).encode()}
    write_cached(roots.hub_cache, "org/model", files)
    model = only(models)
    assert (model.state, model.state_reason) == ("ready", None)
    assert (model.runnable, model.runnable_reason) == (False, reason)
    assert (model.characteristics is not None) is has_config


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({**CONFIG, "model_file": "model.py"}, "it needs a program of its own, and mlxm runs none"),
        ({"architectures": ["X"]}, "config.json names no model_type"),
        ({"model_type": "whisper"}, "mlxm runs no audio models"),
    ],
)
def test_what_mlxm_does_not_run_says_why(
    models: LocalModels, roots: Roots, config: dict[str, Any], reason: str
) -> None:
    """Before anybody waits for it to load."""
    write_folder(roots.imported[0] / "mine", model_files(config))
    assert (only(models).state, only(models).runnable_reason) == ("ready", reason)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("config.json", b"{", "config.json is not valid JSON"),
        ("config.json", b"[]", "config.json is not a JSON object"),
        ("tokenizer_config.json", b"\xff", "tokenizer_config.json is not valid UTF-8"),
        (INDEX, b"{}", f"{INDEX} has no weight_map"),
        (SHARD.format(2), b"", "is damaged: it has 0 bytes"),
        (SHARD.format(2), safetensors(PLAIN)[:-1], "is damaged: it holds"),
    ],
)
def test_a_damaged_file_makes_the_model_broken_and_is_named(
    models: LocalModels, roots: Roots, name: str, content: bytes, reason: str
) -> None:
    """The list goes on."""
    write_cached(roots.hub_cache, "org/good", model_files())
    snapshot = write_cached(roots.hub_cache, "org/model", sharded() | {name: content})
    good, model = models.list()
    assert (good.state, model.state) == ("ready", "broken")
    assert reason in (model.state_reason or "")
    assert str(snapshot / name) in (model.state_reason or "")
    assert model.runnable_reason == "it is broken"


def test_an_unreadable_file_makes_the_model_broken(models: LocalModels, roots: Roots) -> None:
    """A folder where a file should be cannot be read by anybody."""
    folder = write_folder(roots.imported[0] / "mine", model_files())
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer_config.json").mkdir()
    assert only(models).state == "broken"
    assert "Is a directory" in (only(models).state_reason or "")
