"""Whether a model's folder is whole, and whether mlxm can run what is in it: two questions with two reasons."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal

import msgspec

from mlxm.catalog.characteristics import Characteristics, describe
from mlxm.catalog.inventory import Inventory
from mlxm.checkpoint.files import read_object
from mlxm.checkpoint.safetensors import INDEX_NAME, expected_shards, indexed_files
from mlxm.errors import ModelBroken

State = Literal["ready", "incomplete", "broken"]

_PARTS: Final = (".incomplete", ".part", ".partial", ".download", ".crdownload", ".aria2", ".tmp")
_OTHER_FORMATS: Final = (
    (".gguf", "GGUF"),
    (".npz", "NumPy"),
    (".bin", "PyTorch"),
    (".pt", "PyTorch"),
    (".pth", "PyTorch"),
    (".ckpt", "PyTorch"),
    (".onnx", "ONNX"),
    (".h5", "TensorFlow"),
    (".msgpack", "Flax"),
)
_ONLY: Final = "mlxm runs safetensors only"
_NUM_SHOWN: Final = 3


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a look at a folder concluded."""

    state: State
    state_reason: str | None = None
    runnable: bool = False
    runnable_reason: str | None = None
    characteristics: Characteristics | None = None


def judge(folder: Path, inventory: Inventory, *, name: str, num_unfinished: int = 0) -> Verdict:
    """Look at the model in `folder`; never raises for what is wrong with it."""
    names = {file.name for file in inventory.files if "/" not in file.name}
    if inventory.unreadable:
        return _unusable("broken", f"cannot be read: {_listed(inventory.unreadable)}")
    try:
        missing = _what_came_in_part(inventory, num_unfinished) or _what_is_missing(folder, inventory, names)
        if missing is not None:
            return _described(_unusable("incomplete", missing), folder, name, names)
        if "config.json" not in names:
            return _whole(None, _foreign_reason(names))
        found = describe(folder, name=name)
    except ModelBroken as error:
        return _unusable("broken", error.message)
    return _whole(found, _foreign_reason(names) or _unfit_reason(found))


def _what_came_in_part(inventory: Inventory, num_unfinished: int) -> str | None:
    if inventory.dangling:
        return f"links to nothing: {_listed(inventory.dangling)}"
    parts = [file.name for file in inventory.files if file.name.endswith(_PARTS)]
    if parts:
        return f"came in part: {_listed(parts)}"
    if num_unfinished:
        return f"{num_unfinished} {'file' if num_unfinished == 1 else 'files'} came in part"
    return None


def _what_is_missing(folder: Path, inventory: Inventory, names: set[str]) -> str | None:
    index = read_object(folder / INDEX_NAME)
    promised = set() if index is None else indexed_files(index, folder / INDEX_NAME)
    missing = sorted((promised | expected_shards(names)) - names)
    if missing:
        what = "weight file is" if len(missing) == 1 else "weight files are"
        return f"{len(missing)} {what} missing: {_listed(missing)}"
    if not _has_weights(names, inventory):
        return "its weights are missing"
    if "config.json" not in names and _has_mlx_weights(names) and not _is_other_thing(names):
        return "config.json is missing"
    return None


def _described(verdict: Verdict, folder: Path, name: str, names: set[str]) -> Verdict:
    """What is already there of an incomplete model tells what it will be."""
    if "config.json" not in names:
        return verdict
    try:
        found = describe(folder, name=name, check_weights=False)
    except ModelBroken:
        return verdict  # it is incomplete in any case
    return msgspec.structs.replace(verdict, characteristics=found)


def _foreign_reason(names: set[str]) -> str | None:
    """Why mlx-lm would find no weights here."""
    if "model_index.json" in names:
        return "it is a pipeline for images, not a language model"
    if "adapter_config.json" in names and not _has_mlx_weights(names):
        return "it is an adapter for another model"
    if _has_mlx_weights(names):
        return None
    formats = sorted({kind for ending, kind in _OTHER_FORMATS for name in names if name.endswith(ending)})
    if formats:
        return f"its weights are {' and '.join(formats)}; {_ONLY}"
    return "it has no model*.safetensors, which is what mlx-lm loads"


def _unfit_reason(found: Characteristics) -> str | None:
    """Why a whole model with safetensors cannot be run."""
    if "model_file" in found.own_code:
        return "it needs a program of its own, and mlxm runs none"
    if found.architecture is None:
        return "config.json names no model_type"
    if found.kind == "audio":
        return "mlxm runs no audio models"
    return None


def _has_weights(names: set[str], inventory: Inventory) -> bool:
    """In any format, and for pipelines in any folder."""
    endings = (".safetensors", *(ending for ending, _ in _OTHER_FORMATS))
    return any(
        file.name.endswith(endings) for file in inventory.files if "/" not in file.name or _is_other_thing(names)
    )


def _has_mlx_weights(names: Iterable[str]) -> bool:
    return any(name.startswith("model") and name.endswith(".safetensors") for name in names)


def _is_other_thing(names: set[str]) -> bool:
    return bool(names & {"model_index.json", "adapter_config.json"})


def _whole(found: Characteristics | None, unfit: str | None) -> Verdict:
    return Verdict(state="ready", runnable=unfit is None, runnable_reason=unfit, characteristics=found)


def _unusable(state: State, reason: str) -> Verdict:
    return Verdict(state=state, state_reason=reason, runnable_reason=f"it is {state}")


def _listed(names: Iterable[str]) -> str:
    """The first few names, as they can be shown."""
    ordered = sorted(names)
    shown = ", ".join(name.encode("utf-8", "backslashreplace").decode() for name in ordered[:_NUM_SHOWN])
    more = len(ordered) - _NUM_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
