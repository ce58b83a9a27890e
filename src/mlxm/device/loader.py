"""A model folder becomes a model that has answered once; whatever is wrong with the folder becomes ModelBroken.

Only mlx-lm's own architectures are built, no file of the model is ever executed, and nothing is fetched.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

from mlxm.engine.model_files import ModelConfig, check_weights, read_model_config
from mlxm.engine.output import Detokenizer
from mlxm.errors import MlxmError, ModelBroken, OutOfMemory

EVAL_BYTES = 256 * 1024 * 1024
_ALLOCATION_FAILED = (
    "[malloc",
    "[metal::malloc]",
    "[allocator",
    "[METAL] Command buffer execution failed: Insufficient",
)
_FAILURES = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, OSError, RuntimeError),
    *(TypeError, ValueError),
)
"""What mlx-lm raises when a configuration or a weight is not what it expects."""

Progress = Callable[[int, int], None]


class LoadedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model in memory that has answered a first forward."""

    model: Any
    config: ModelConfig
    detokenizer: Detokenizer
    stop_ids: frozenset[int]
    vocab_size: int
    load_s: float

    @property
    def active_bytes(self) -> int:
        """What mlx holds in memory now."""
        return mx.get_active_memory()


def use_plain_kernels() -> None:
    """On the CPU mlx fuses operations by running a compiler, seconds for each new kernel; plain ones answer at once."""
    if mx.default_device().type == mx.cpu:
        mx.disable_compile()


def load(folder: Path, report: Progress) -> LoadedModel:
    """Load the model in `folder`, reporting (done, total) bytes of weights; raises ModelBroken or OutOfMemory."""
    start = time.monotonic()
    config = read_model_config(folder)
    check_weights(folder)
    detokenizer = Detokenizer.from_folder(folder)
    with explaining(folder):
        model = _read_weights(folder, report)
        vocab_size = _first_forward(model, folder)
    named = None if config.eos_token is None else detokenizer.id_of(config.eos_token)
    return LoadedModel(
        model=model,
        config=config,
        detokenizer=detokenizer,
        stop_ids=config.eos_ids if named is None else config.eos_ids | {named},
        vocab_size=vocab_size,
        load_s=time.monotonic() - start,
    )


@contextmanager
def explaining(folder: Path) -> Iterator[None]:
    """Turn what mlx and mlx-lm raise about the model in `folder` into ModelBroken or OutOfMemory."""
    try:
        yield
    except _FAILURES as error:
        raise _explained(error, folder) from error


def _read_weights(folder: Path, report: Progress) -> Any:
    """Weights are read from disk when they are evaluated, so that is done by the piece."""
    model, _ = load_model(folder, lazy=True, trust_remote_code=False)
    leaves: Any = tree_flatten(model.parameters())
    arrays: list[mx.array] = [array for _, array in leaves]
    total = sum(array.nbytes for array in arrays)
    done = 0
    report(done, total)
    for group in _groups(arrays):
        mx.eval(group)
        done += sum(array.nbytes for array in group)
        report(done, total)
    return model


def _groups(arrays: list[mx.array]) -> Iterator[list[mx.array]]:
    """Arrays in runs of about EVAL_BYTES."""
    group: list[mx.array] = []
    size = 0
    for array in arrays:
        group.append(array)
        size += array.nbytes
        if size >= EVAL_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _first_forward(model: Any, folder: Path) -> int:
    """Answer one token, so that a model which says it is ready does answer; the size of its vocabulary."""
    logits = model(mx.array([[0]]), cache=make_prompt_cache(model))
    if not mx.isfinite(mx.logsumexp(logits.astype(mx.float32))).item():
        raise ModelBroken(f"The weights in {folder} give no usable numbers.", hint="Fetch the model again.")
    return int(logits.shape[-1])


def _explained(error: Exception, folder: Path) -> MlxmError:
    """A failure of mlx-lm in our words: its first line says what it stumbled over."""
    if isinstance(error, RuntimeError) and str(error).startswith(_ALLOCATION_FAILED):
        return OutOfMemory(f"There is not enough memory for the model in {folder}.", hint="Choose a smaller model.")
    reason = str(error).strip().partition("\n")[0]
    return ModelBroken(
        f"mlx-lm cannot build the model in {folder} from its config.json and weights: {type(error).__name__}: {reason}",
        hint="The model may be damaged, or of an architecture that mlx-lm does not know.",
    )
