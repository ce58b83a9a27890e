"""Whether a store computes what mlx-lm computes with its own caches on this device, and how long its steps take.

Everything is given: tokens, where chunks end, which sequences share a step. So what differs is the store. How much may
differ is measured too: mlx-lm's own numbers change in the last bits with the way in which a prompt is cut.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import mlx.core as mx
import msgspec
from mlx_lm.models.cache import make_prompt_cache

from mlxm.device.kv_store import KVStore, LayerShape
from mlxm.device.runner import PagedRunner
from mlxm.engine.blocks import num_blocks_for
from mlxm.engine.plan import Chunk, Plan, Row, RunnerFacts

_NUM_ROWS = 3
"""Logits that are compared of each sequence: after so many tokens less than all, one less, and so on."""
_PREFIXES = (0, 1, 30, 33, 70)
"""Tokens before the first of those: rows and chunks that end within blocks, at their edges, and cross them."""
_BEYOND_WINDOW = 21
_LONGEST_S = 5.0
"""A window is only crossed when that takes no longer."""
_SLACK = 4.0
_SINGLE, _HALF = (1e-4, 1e-3), (1e-2, 1e-1)
"""What may differ at least, and at most, as a part of the largest logit."""
_STRAY = 8
"""One row in so many may differ more in half precision: a router may choose other experts for it."""
_TIMED_CONTEXTS = ((64, 64), (32, 1024))
"""The shortest and the longest context of the rows that are timed."""
_TIMED_S = 0.3
_WORTH_IT = 0.97
_MIN_TIMED_STEPS, _MAX_TIMED_STEPS = 2, 5


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """Sequences of tokens, mlx-lm's logits [rows, vocabulary] of the last rows of each, and how far off they may be."""

    sequences: list[list[int]]
    logits: list[mx.array]
    tolerance: float
    uncrossed: tuple[int, ...]
    """Windows that were too long to be left behind."""


def compute_reference(model: Any, shapes: Sequence[LayerShape], vocab_size: int) -> Reference:
    """Ask mlx-lm."""
    numbers = random.Random(0)  # noqa: S311  (any tokens do, the same ones every time)

    def sequence(prefix: int) -> list[int]:
        return [numbers.randrange(vocab_size) for _ in range(prefix + _NUM_ROWS)]

    sequences = [sequence(prefix) for prefix in _PREFIXES]
    began_s = time.perf_counter()
    logits = [_alone(model, tokens, 1) for tokens in sequences]
    token_s = (time.perf_counter() - began_s) / sum(map(len, sequences))
    windows = sorted({shape.window for shape in shapes if shape.window is not None})
    crossed = [window for window in windows if token_s * (window + _BEYOND_WINDOW) <= _LONGEST_S]
    for window in crossed:
        sequences.append(sequence(window + _BEYOND_WINDOW))
        logits.append(_alone(model, sequences[-1], 1))
    noise = _error([_alone(model, tokens, 2) for tokens in sequences], logits)
    least, most = _SINGLE if logits[0].dtype == mx.float32 else _HALF
    return Reference(
        sequences=sequences,
        logits=logits,
        tolerance=min(max(_SLACK * noise, least), most),
        uncrossed=tuple(window for window in windows if window not in crossed),
    )


def blocks_needed(reference: Reference) -> int:
    """Blocks of a pool in which all sequences of the reference find room, and those that are timed."""
    checked = sum(num_blocks_for(len(tokens)) for tokens in reference.sequences)
    return 1 + checked


def timing_blocks(num_rows: int) -> int:
    """Blocks of a pool in which so many rows can be timed."""
    return 1 + max(
        sum(num_blocks_for(context + _MAX_TIMED_STEPS) for context in _contexts(num_rows, *ends))
        for ends in _TIMED_CONTEXTS
    )


def find_fault(store: KVStore, reference: Reference) -> str | None:
    """How the store's numbers differ from mlx-lm's, if they do."""
    error = _error(_compute_all(store, reference.sequences), reference.logits)
    if error <= reference.tolerance:
        return None
    return f"logits were off by {error:.2g} of the largest, {reference.tolerance:.2g} is usual"


def time_rows(store: KVStore, num_rows: int) -> float:
    """Seconds of a step with so many rows: the sum over short contexts and mixed ones, the best of a few each."""
    return sum(_time_rows(store, _contexts(num_rows, *ends)) for ends in _TIMED_CONTEXTS)


def _contexts(num_rows: int, shortest: int, longest: int) -> list[int]:
    return [round(shortest * (longest / shortest) ** (row / max(1, num_rows - 1))) for row in range(num_rows)]


def _timed_rows(contexts: Sequence[int], step: int, token: int | None) -> tuple[Row, ...]:
    """A row for each context, over blocks of its own."""
    rows = []
    first = 1
    for row, context in enumerate(contexts):
        last = first + num_blocks_for(context + _MAX_TIMED_STEPS)
        rows.append(Row(sequence=row, position=context + step, token=token, table=range(first, last)))
        first = last
    return tuple(rows)


def _time_rows(store: KVStore, contexts: Sequence[int]) -> float:
    tokens = mx.zeros((len(contexts),), dtype=mx.uint32)
    best_s, spent_s = float("inf"), 0.0
    for step in range(_MAX_TIMED_STEPS):
        if step >= _MIN_TIMED_STEPS and spent_s > _TIMED_S:
            break
        began_s = time.perf_counter()
        computed = store.compute(_timed_rows(contexts, step, 0), tokens, ())
        mx.eval(computed.logits, store.pools.arrays())
        took_s = time.perf_counter() - began_s
        best_s, spent_s = min(best_s, took_s), spent_s + took_s
    return best_s


def ahead_pays(store: KVStore, num_rows: int) -> bool:
    """Whether steps take less time when each is launched before the one before it is collected.

    They take more where the device still holds the pool for the last step's sake, so that every write copies it.
    """
    facts = RunnerFacts(
        kind="", why="", num_blocks=0, max_rows=num_rows, shares_prefixes=True, runs_ahead=True, block_bytes=0
    )
    times_s = {0: float("inf"), 1: float("inf")}
    for depth in (0, 1, 0, 1):
        runner = PagedRunner(store, lambda logits, _: mx.argmax(logits, axis=-1), facts)
        times_s[depth] = min(times_s[depth], _run_steps(runner, num_rows, depth))
    return times_s[1] < _WORTH_IT * times_s[0]


def _run_steps(runner: PagedRunner, num_rows: int, depth: int) -> float:
    """Seconds of some steps with so many of them in flight."""
    contexts = _contexts(num_rows, *_TIMED_CONTEXTS[1])
    began_s = time.perf_counter()
    for step in range(_MAX_TIMED_STEPS):
        runner.launch(Plan(rows=_timed_rows(contexts, step, None if step else 0)))
        if step >= depth:
            runner.collect()
    for _ in range(depth):
        runner.collect()
    return time.perf_counter() - began_s


def _alone(model: Any, tokens: list[int], num_pieces: int) -> mx.array:
    """Logits after each of the last tokens, the rest read in so many pieces."""
    caches = make_prompt_cache(model)
    num_read = len(tokens) - _NUM_ROWS
    edges = [num_read * piece // num_pieces for piece in range(num_pieces + 1)]
    for begin, end in pairwise(edges):
        if end > begin:
            model(mx.array([tokens[begin:end]]), cache=caches)
            mx.eval([layer.state for layer in caches])
    logits = [model(mx.array([[token]]), cache=caches)[0] for token in tokens[num_read:]]
    joined = mx.concatenate(logits)
    mx.eval(joined)
    return joined


class _Progress:
    """How far one sequence has come."""

    def __init__(self, number: int, tokens: list[int], table: list[int]) -> None:
        self._number = number
        self._tokens = tokens
        self._table = table
        self._done = 0
        self.logits: list[mx.array] = []

    def next(self) -> Row | Chunk | None:
        """Two chunks, the first of odd size, then rows."""
        num_read = len(self._tokens) - _NUM_ROWS
        start = self._done
        if start == len(self._tokens):
            return None
        if start >= num_read:
            self._done += 1
            return Row(sequence=self._number, position=start, token=self._tokens[start], table=self._table)
        self._done = num_read if start else num_read * 2 // 5 + 1
        return Chunk(sequence=self._number, start=start, tokens=self._tokens[start : self._done], table=self._table)


def _compute_all(store: KVStore, sequences: Sequence[list[int]]) -> list[mx.array]:
    """Each sequence's logits, computed side by side over blocks that do not follow each other."""
    needed = [num_blocks_for(len(tokens)) for tokens in sequences]
    free = list(range(1, 1 + sum(needed)))
    random.Random(0).shuffle(free)  # noqa: S311  (as above)
    states = [
        _Progress(number, tokens, [free.pop() for _ in range(num_blocks)])
        for number, (tokens, num_blocks) in enumerate(zip(sequences, needed, strict=True))
    ]
    while works := [work for state in states if (work := state.next()) is not None]:
        rows = [work for work in works if isinstance(work, Row)]
        chunks = [work for work in works if isinstance(work, Chunk)]
        tokens = mx.array([row.token for row in rows], dtype=mx.uint32) if rows else None
        computed = store.compute(rows, tokens, chunks)
        outputs = [array for array in (computed.logits, computed.finite_chunks) if array is not None]
        mx.eval(outputs, store.pools.arrays())
        for place, row in enumerate(rows):
            if computed.logits is not None:
                states[row.sequence].logits.append(computed.logits[place])
    return [mx.stack(state.logits) for state in states]


def _error(found: Sequence[mx.array], expected: Sequence[mx.array]) -> float:
    """How far a logit is off at most, as a part of the largest one of its row; strays left out in half precision."""
    mine = mx.concatenate(list(found)).astype(mx.float32)
    theirs = mx.concatenate(list(expected)).astype(mx.float32)
    off = mx.max(mx.abs(mine - theirs), axis=-1) / mx.max(mx.abs(theirs), axis=-1)
    errors: Any = mx.sort(mx.where(mx.isnan(off), mx.inf, off)).tolist()
    is_single = expected[0].dtype == mx.float32
    return float(errors[-1 if is_single else -1 - len(errors) // _STRAY])
