"""Computes plans over a KV store: plan to arrays, one forward, tokens.

On a GPU the next step may be launched before the tokens of the last one have reached the host: they are taken from
where they lie. On a CPU launching computes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import msgspec

from mlxm.device.kv_store import KVStore
from mlxm.device.sampler import Sampled, Sampler
from mlxm.device.stopwatch import Stopwatch
from mlxm.engine.plan import Outcome, Plan, Row, RunnerFacts
from mlxm.errors import InternalError


class _Launched(msgspec.Struct, frozen=True, kw_only=True):
    """A step whose numbers may still be under way."""

    rows: tuple[Row, ...]
    sampled: Sampled | None
    finite_chunks: mx.array | None
    num_chunk_tokens: int
    began_s: float


class PagedRunner:
    """Runs a model's rows and chunks on the store that was chosen for it."""

    def __init__(
        self, store: KVStore, sampler: Sampler, facts: RunnerFacts, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._store = store
        self._sampler = sampler
        self._facts = facts
        self._launched: deque[_Launched] = deque()
        self._latest: dict[int, int] = {}
        """Where each sequence's token is among those of the latest step."""
        self._latest_tokens: mx.array | None = None
        self._stopwatch = Stopwatch(clock)

    @property
    def facts(self) -> RunnerFacts:
        """What it can do."""
        return self._facts

    def launch(self, plan: Plan) -> None:
        """Start a step."""
        began_s = self._stopwatch.now()
        if plan.wipes:
            self._store.pools.wipe(plan.wipes)
        if plan.copies:
            self._store.pools.copy(plan.copies)
        inputs = self._inputs(plan.rows) if plan.rows else None
        computed = self._store.compute(plan.rows, inputs, plan.chunks)
        sampled = None if computed.logits is None else self._sampler(computed.logits, plan.rows)
        outputs = [] if sampled is None else sampled.arrays()
        if computed.finite_chunks is not None:
            outputs.append(computed.finite_chunks)
        mx.async_eval(outputs, self._store.pools.arrays())  # type: ignore[no-untyped-call]  # as mlx has it
        self._latest = {row.sequence: place for place, row in enumerate(plan.rows)}
        self._latest_tokens = None if sampled is None else sampled.tokens
        self._launched.append(
            _Launched(
                rows=plan.rows,
                sampled=sampled,
                finite_chunks=computed.finite_chunks,
                num_chunk_tokens=sum(len(chunk.tokens) for chunk in plan.chunks),
                began_s=began_s,
            )
        )

    def collect(self) -> Outcome:
        """Wait for the oldest step that was launched and not collected."""
        step = self._launched.popleft()
        try:
            tokens = [] if step.sampled is None else _numbers(step.sampled.tokens)
            failed_rows = () if step.sampled is None else _false_places(step.sampled.are_valid)
            logprobs = () if step.sampled is None else step.sampled.logprobs_of(step.rows)
            failed_chunks = _false_places(step.finite_chunks)
        except BaseException:
            self._launched.clear()  # they build on this one
            raise
        chunks_s, rows_s = self._stopwatch.divide(step.began_s, len(tokens), step.num_chunk_tokens)
        return Outcome(
            tokens=tuple(tokens),
            logprobs=logprobs,
            failed_rows=failed_rows,
            failed_chunks=failed_chunks,
            chunks_s=chunks_s,
            rows_s=rows_s,
        )

    def forget(self, sequence: int) -> None:
        """Drop what the sampler keeps for a sequence; nothing else lies outside its blocks."""
        self._sampler.forget(sequence)

    def _inputs(self, rows: Sequence[Row]) -> mx.array:
        """The rows' tokens; those that are not known yet come from the latest step."""
        known = mx.array([0 if row.token is None else row.token for row in rows], dtype=mx.uint32)
        unknown = [row.token is None for row in rows]
        if not any(unknown):
            return known
        if self._latest_tokens is None:
            raise InternalError("A row waits for a token of a step that has none.")
        places = [self._latest.get(row.sequence, 0) if row.token is None else 0 for row in rows]
        taken = self._latest_tokens[mx.array(places)].astype(mx.uint32)
        return taken if all(unknown) else mx.where(mx.array(unknown), taken, known)


def _numbers(array: mx.array) -> list[int]:
    numbers: Any = array.tolist()
    return [int(number) for number in numbers]


def _false_places(flags: mx.array | None) -> tuple[int, ...]:
    if flags is None:
        return ()
    values: Any = flags.tolist()
    return tuple(place for place, value in enumerate(values) if not value)
