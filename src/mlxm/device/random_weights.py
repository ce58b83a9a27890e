"""Random weights for any architecture of mlx-lm: the model's own class says which arrays there are.

Run as `python -m mlxm.device.random_weights JOBS.json` (a list of `mlxm.tiny.jobs.Job`), so that who asks needs no mlx.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from math import prod, sqrt
from pathlib import Path
from typing import Any, Final, cast

import mlx.core as mx
import msgspec
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes, load_model, quantize_model
from numpy.typing import NDArray

from mlxm.errors import InvalidRequest, MlxmError, ModelBroken
from mlxm.tiny.jobs import REFUSED, Job, Quantise
from mlxm.tiny.tokenizer import FIRST_SPECIAL_ID, VOCAB_SIZE
from mlxm.tiny.weights import normal, write_safetensors

_MATRIX_GAIN: Final = 2.0
_EMBEDDING_GAIN: Final = 0.3
"""Layers speak louder than embeddings, or a model whose head is its embedding would repeat its last token."""
_TIED_LOGIT_GAIN: Final = 10.0
_MARKER_SCALE: Final = 0.05
"""Special tokens are as good as never chosen: an answer ends at its limit, and comparisons get the length they ask."""
_BY_NAME: Final = (
    (re.compile(r"A_log$"), -0.5, 0.8),
    (re.compile(r"(dt_bias|dt_proj\.bias)$"), -2.5, 0.8),
    (re.compile(r"recurrent_param$"), -4.5, 0.8),
    (re.compile(r"[aw]_lora\.lora\.\d+\.bias$"), -4.0, 0.5),
    (re.compile(r"sinks$"), 0.0, 1.0),
    (re.compile(r"bias$"), 0.0, 0.1),
)
"""Centre and spread of parameters that are no plain matrix; the recurrent ones are set to forget slowly."""

_IS_CONVOLUTION: Final = re.compile(r"conv[^.]*\.weight$")
_USAGE: Final = "python -m mlxm.device.random_weights JOBS.json"
_IN_A_LAYER: Final = re.compile(r"\.\d+\.")


def make(job: Job) -> None:
    """Write config.json and the weights of one model, and check that mlx-lm reads back what was written."""
    folder = Path(job.folder)
    model, config = _filled(job)
    arrays = _arrays(model)
    write_safetensors(folder / "model.safetensors", arrays)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    _check(folder, arrays)


def main(arguments: Sequence[str]) -> int:
    """Make every model of the job file that is the only argument; 0, or REFUSED with the reason on stderr."""
    try:
        for job in _jobs(arguments):
            make(job)
    except MlxmError as error:
        sys.stderr.write(f"{error.message}\n")
        return REFUSED
    return 0


def _jobs(arguments: Sequence[str]) -> list[Job]:
    if len(arguments) != 1:
        raise InvalidRequest(f"one job file is wanted, {len(arguments)} arguments are given", hint=_USAGE)
    try:
        return msgspec.json.decode(Path(arguments[0]).read_bytes(), type=list[Job])
    except (OSError, msgspec.DecodeError) as error:
        raise InvalidRequest(f"{arguments[0]} is no job file: {error}", hint=_USAGE) from error


def _filled(job: Job) -> tuple[nn.Module, dict[str, Any]]:
    try:
        model_class, arguments_class = _get_classes(job.config)
        model = model_class(arguments_class.from_dict(job.config))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"mlx-lm makes no model of this {job.config.get('model_type')!r} configuration: {error}"
        raise InvalidRequest(message, hint="compare the configuration with the model's ModelArgs in mlx-lm") from error
    model.load_weights([(name, mx.array(values)) for name, values in _values(model, job.seed).items()])
    model.eval()
    if job.quantise is None:
        return model, job.config
    return _quantised(model, job.config, job.quantise)


def _quantised(model: nn.Module, config: dict[str, Any], quantise: Quantise) -> tuple[nn.Module, dict[str, Any]]:
    try:
        quantised, config = quantize_model(model, config, quantise.group_size, quantise.bits, quantise.mode)
    except (ValueError, TypeError) as error:
        message = f"mlx-lm does not quantise this {config['model_type']} model to {quantise}: {error}"
        raise InvalidRequest(message, hint="take another group size, mode or architecture") from error
    return quantised, config


def _parameters(model: nn.Module) -> list[tuple[str, mx.array]]:
    tree = model.parameters()  # type: ignore[no-untyped-call]
    return cast("list[tuple[str, mx.array]]", tree_flatten(tree))


def _arrays(model: nn.Module) -> dict[str, NDArray[Any]]:
    return {name: np.array(array) for name, array in _parameters(model)}


def _values(model: nn.Module, seed: int) -> dict[str, NDArray[np.float32]]:
    """Every parameter of the model by name, drawn from the seed and the name alone."""
    modules: list[tuple[str, nn.Module]] = model.named_modules()  # type: ignore[no-untyped-call]
    embeddings = {f"{path}.weight" for path, module in modules if isinstance(module, nn.Embedding)}
    shapes = {name: tuple(array.shape) for name, array in _parameters(model)}
    tied = not any(_is_over_vocabulary(shape) for name, shape in shapes.items() if name not in embeddings)
    values = {}
    for name, shape in shapes.items():
        array = _matrix(name, shape, seed, _EMBEDDING_GAIN) if name in embeddings else _draw(name, shape, seed)
        if _is_over_vocabulary(shape):
            array[FIRST_SPECIAL_ID:] *= np.float32(_MARKER_SCALE)
        if tied and name not in embeddings and _is_last_norm(name, shape):
            array *= np.float32(_TIED_LOGIT_GAIN)
        values[name] = array
    return values


def _draw(name: str, shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    """Values that suit what a parameter's name and shape say it is for."""
    for pattern, centre, spread in _BY_NAME:
        if pattern.search(name) is not None:
            return normal(name, shape, seed=seed) * np.float32(spread) + np.float32(centre)
    if len(shape) <= 1:
        return normal(name, shape, seed=seed) * np.float32(0.1) + np.float32(1.0)
    if _IS_CONVOLUTION.search(name) is not None:
        return normal(name, shape, seed=seed) * np.float32(1 / sqrt(prod(shape[1:])))
    return _matrix(name, shape, seed, _MATRIX_GAIN)


def _matrix(name: str, shape: tuple[int, ...], seed: int, gain: float) -> NDArray[np.float32]:
    return normal(name, shape, seed=seed) * np.float32(gain / sqrt(shape[-1]))


def _is_over_vocabulary(shape: tuple[int, ...]) -> bool:
    return len(shape) > 1 and shape[0] == VOCAB_SIZE


def _is_last_norm(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) == 1 and name.endswith(".weight") and _IN_A_LAYER.search(name) is None


def _check(folder: Path, written: dict[str, NDArray[Any]]) -> None:
    """Some loaders rearrange checkpoints of other origins; none may take ours for one of those."""
    loaded, _ = load_model(folder)
    found = _arrays(loaded)
    changed = sorted(
        name
        for name in written.keys() | found.keys()
        if name not in written or name not in found or not np.array_equal(written[name], found[name])
    )
    if changed:
        message = f"mlx-lm reads other weights than were written for {folder.name}: {', '.join(changed[:5])}"
        raise ModelBroken(message, hint="the architecture's sanitize() wants a layout of its own")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
