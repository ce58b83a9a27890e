"""Whether a model gives each row in a batch what the row gets alone: tried with a few tokens when a model is loaded.

Some models read a batch cache as if it were one sequence's, and give other tokens without any error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from mlxm.device.batch_caches import BatchCacheRunner
from mlxm.device.cache_batch import find_unmergeable
from mlxm.device.sampler import Sampled, Sampler
from mlxm.engine.plan import Chunk, Plan, Row, RunnerFacts

_FAILURES = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError, RuntimeError),
    *(TypeError, ValueError),
)
"""What mlx-lm's models and caches raise when they are not made for a batch."""
_TOLERANCE = 1e-3
_HALF_TOLERANCE = 0.1
"""Of the largest logit: half-precision rounds differently with the batch's width, a wrong mask or position is worse."""
_ROWS_PER_STRAY = 8

_PROMPT_LENGTHS = (13, 2, 6)
_ROWS_OF_STEPS = ((0, 1), (0, 1), (2,), (0, 1, 2), (0, 1, 2), (1, 2), (0, 2), (0, 1, 2))
"""Which sequences have a row in each step: they join at different lengths, leave, and come back."""
_NO_FACTS = RunnerFacts(
    kind="trial", why="", num_blocks=64, max_rows=3, shares_prefixes=False, runs_ahead=False, block_bytes=0
)


def find_batching_fault(model: Any, vocab_size: int) -> str | None:
    """Why rows of this model must be computed one at a time; None when a batch is right."""
    unmergeable = find_unmergeable(make_prompt_cache(model))
    if unmergeable is not None:
        return f"mlx-lm has no batch form of {unmergeable}"
    plans = _plans(vocab_size)
    alone = _logits(model, plans, batches=False)
    try:
        batched = _logits(model, plans, batches=True)
    except _FAILURES as raised:
        reason = str(raised).strip().partition("\n")[0]
        return f"mlx-lm's model does not run on batch caches: {type(raised).__name__}: {reason}"
    error, tolerance = _error(batched, alone)
    if not error <= tolerance:
        return f"its logits are others in a batch (off by {error:.2g} of the largest)"
    return None


def _error(batched: mx.array, alone: mx.array) -> tuple[float, float]:
    """How far a logit is off at most, as a part of the largest one of its row, and how far it may be.

    In half precision a router may choose other experts for a row now and then, which is no fault of the batch.
    """
    off = mx.max(mx.abs(batched - alone), axis=-1) / mx.max(mx.abs(alone), axis=-1)
    errors: Any = mx.sort(off).tolist()
    if alone.dtype == mx.float32:
        return errors[-1], _TOLERANCE
    return errors[-1 - len(errors) // _ROWS_PER_STRAY], _HALF_TOLERANCE


def _logits(model: Any, plans: list[Plan], *, batches: bool) -> mx.array:
    """Logits of all rows of all steps."""
    sampler = _Keeping()
    runner = BatchCacheRunner(model, sampler, _NO_FACTS, batches=batches)
    for plan in plans:
        runner.launch(plan)
        runner.collect()
    return mx.concatenate(sampler.kept)


class _Keeping(Sampler):
    """Keeps all logits that it sees."""

    def __init__(self) -> None:
        super().__init__(0.0)
        self.kept: list[mx.array] = []

    def __call__(self, logits: mx.array, rows: Sequence[Row]) -> Sampled:
        """The likeliest tokens."""
        self.kept.append(logits)
        return super().__call__(logits, rows)


def _plans(vocab_size: int) -> list[Plan]:
    """The prompts, then the steps; every token is given, so that both ways read the same ones."""
    lengths = list(_PROMPT_LENGTHS)
    prompts = tuple(
        Chunk(sequence=each, start=0, tokens=[_token(each, place, vocab_size) for place in range(length)], table=())
        for each, length in enumerate(lengths)
    )
    plans = [Plan(chunks=prompts)]
    for sequences in _ROWS_OF_STEPS:
        rows = [
            Row(sequence=each, position=lengths[each], token=_token(each, lengths[each], vocab_size), table=())
            for each in sequences
        ]
        plans.append(Plan(rows=tuple(rows)))
        for each in sequences:
            lengths[each] += 1
    return plans


def _token(sequence: int, position: int, vocab_size: int) -> int:
    return (sequence * 257 + position * 31 + 7) % vocab_size
