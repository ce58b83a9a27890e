"""Whether a store computes what mlx-lm computes with its own caches on this device, and how long its steps take.

Everything is given: tokens, where chunks end, which sequences share a step. So what differs is the store.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

import mlx.core as mx

from mlxm.device.kv_store import KVStore
from mlxm.device.layout import MIN_SHARED_BLOCKS
from mlxm.device.reference import NUM_ROWS, SHARED_TOKENS, Reference, compute_error
from mlxm.device.runner import PagedRunner
from mlxm.device.sampler import Sampler
from mlxm.engine.blocks import num_blocks_for
from mlxm.engine.plan import Chunk, Plan, Row, RunnerFacts

_TIMED_CONTEXTS = ((64, 64), (32, 1024))
"""The shortest and the longest context of the rows that are timed."""
_TIMED_S = 0.3
_WORTH_IT = 0.97
_MIN_TIMED_STEPS, _MAX_TIMED_STEPS = 2, 5


def blocks_needed(reference: Reference) -> int:
    """Blocks of a pool in which all sequences of the reference find room."""
    needed = sum(num_blocks_for(len(tokens)) for tokens in reference.sequences)
    return 1 + needed - max(0, reference.num_sharers - 1) * MIN_SHARED_BLOCKS


def timing_blocks(num_rows: int) -> int:
    """Blocks of a pool in which so many rows can be timed."""
    return 1 + max(
        sum(num_blocks_for(context + _MAX_TIMED_STEPS) for context in _contexts(num_rows, *ends))
        for ends in _TIMED_CONTEXTS
    )


def find_fault(store: KVStore, reference: Reference) -> str | None:
    """How the store's numbers differ from mlx-lm's, if they do."""
    error = compute_error(_compute_all(store, reference), reference.logits)
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
        runner = PagedRunner(store, Sampler(0.0), facts)
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


class _Progress:
    """How far one sequence has come: it begins where its table is filled already, after so many steps."""

    def __init__(self, number: int, tokens: list[int], table: list[int], *, begin: int = 0, wait: int = 0) -> None:
        self._number = number
        self._tokens = tokens
        self._table = table
        self._begin = begin
        self._done = 0 if begin and not wait else begin
        self._wait = wait
        self.logits: list[mx.array] = []

    def next(self) -> Row | Chunk | None:
        """What others share, if anything, in one chunk; then two chunks, the first of odd size; then rows."""
        if self._wait:
            self._wait -= 1
            return None
        num_read = len(self._tokens) - NUM_ROWS
        start = self._done
        if start == len(self._tokens):
            return None
        if start >= num_read:
            self._done += 1
            return Row(sequence=self._number, position=start, token=self._tokens[start], table=self._table)
        if start < self._begin:
            self._done = self._begin
        else:
            self._done = num_read if start > self._begin else start + (num_read - start) * 2 // 5 + 1
        return Chunk(sequence=self._number, start=start, tokens=self._tokens[start : self._done], table=self._table)


def _begin_all(reference: Reference) -> list[_Progress]:
    """Blocks for all sequences, in no order; the first sharer fills those that the others begin with."""
    free = list(range(1, blocks_needed(reference)))
    random.Random(0).shuffle(free)  # noqa: S311  (as above)

    def blocks(number: int) -> list[int]:
        return [free.pop() for _ in range(number)]

    num_alone = len(reference.sequences) - reference.num_sharers
    states = [
        _Progress(number, tokens, blocks(num_blocks_for(len(tokens))))
        for number, tokens in enumerate(reference.sequences[:num_alone])
    ]
    shared = blocks(MIN_SHARED_BLOCKS) if reference.num_sharers else []
    for number, tokens in enumerate(reference.sequences[num_alone:], start=num_alone):
        table = shared + blocks(num_blocks_for(len(tokens)) - len(shared))
        states.append(_Progress(number, tokens, table, begin=SHARED_TOKENS, wait=int(number > num_alone)))
    return states


def _compute_all(store: KVStore, reference: Reference) -> list[mx.array]:
    """Each sequence's logits, computed side by side."""
    states = _begin_all(reference)
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
