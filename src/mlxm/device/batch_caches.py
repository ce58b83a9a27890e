"""The runner for models whose state does not fit into blocks: every sequence keeps caches of mlx-lm's own classes.

Prompts are read one sequence at a time. Rows are computed in one batch of mlx-lm's batch caches where that was seen to
give each row what it gets alone, else one at a time. Blocks are bookkeeping here: sequences are admitted by them, but
what they keep lies in their caches.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import mlx.core as mx
import msgspec

from mlxm.device.cache_batch import SequenceCaches, arrays_of
from mlxm.device.sampler import Sampled, Sampler
from mlxm.engine.plan import BLOCK_TOKENS, Chunk, Outcome, Plan, Row, RunnerFacts
from mlxm.errors import InternalError


class _Launched(msgspec.Struct, frozen=True, kw_only=True):
    """A step whose numbers may still be under way."""

    rows: tuple[Row, ...]
    sampled: Sampled | None
    finite_chunks: list[mx.array]
    chunks_s: float
    began_rows_s: float


class BatchCacheRunner:
    """Computes plans with one set of mlx-lm caches per sequence; `batches` says whether rows share a forward."""

    def __init__(self, model: Any, sampler: Sampler, facts: RunnerFacts, *, batches: bool) -> None:
        self._model = model
        self._sampler = sampler
        self._facts = facts
        self._batches = batches
        self._caches = SequenceCaches(model)
        self._num_tokens: dict[int, int] = {}
        self._launched: deque[_Launched] = deque()
        self._latest_tokens: dict[int, mx.array] = {}

    @property
    def facts(self) -> RunnerFacts:
        """What it can do."""
        return self._facts

    def launch(self, plan: Plan) -> None:
        """Start a step; what starts at position 0 begins anew."""
        began_s = time.perf_counter()
        finite_chunks = [self._prefill(chunk) for chunk in plan.chunks]
        began_rows_s = time.perf_counter()
        sampled = self._decode(plan.rows) if plan.rows else None
        self._launched.append(
            _Launched(
                rows=plan.rows,
                sampled=sampled,
                finite_chunks=finite_chunks,
                chunks_s=began_rows_s - began_s,
                began_rows_s=began_rows_s,
            )
        )

    def collect(self) -> Outcome:
        """Wait for the oldest step that was launched and not collected."""
        launched, self._launched = self._launched, deque()
        outcome = _outcome(launched.popleft())
        self._launched = launched
        return outcome

    def forget(self, sequence: int) -> None:
        """Drop the sequence's caches, and what the sampler keeps for it."""
        self._sampler.forget(sequence)
        self._num_tokens.pop(sequence, None)
        self._latest_tokens.pop(sequence, None)
        self._caches.forget(sequence)

    def _prefill(self, chunk: Chunk) -> mx.array:
        """Read a run of prompt tokens; whether what the last layer keeps is finite, to which all else leads."""
        self._prepare(chunk.sequence, chunk.start)
        caches = self._caches.take(chunk.sequence)
        self._model(mx.array(list(chunk.tokens))[None], cache=caches)
        mx.eval(arrays_of(caches))
        mx.clear_cache()
        self._num_tokens[chunk.sequence] = chunk.start + len(chunk.tokens)
        return mx.all(mx.stack([mx.isfinite(array).all() for array in arrays_of(caches[-1:])]))

    def _decode(self, rows: tuple[Row, ...]) -> Sampled:
        """The next token of each row."""
        runs = [list(run) for _, run in groupby(range(len(rows)), key=lambda place: rows[place].sequence)]
        for first, *_ in runs:
            self._prepare(rows[first].sequence, rows[first].position)
        inputs = self._inputs(rows)
        alone, together = self._divide(rows, runs)
        pieces = [(run, self._run_alone(rows[run[0]].sequence, inputs[run[0] : run[-1] + 1])) for run in alone]
        if together:
            pieces.append(self._run_together({rows[place].sequence: place for place in together}, inputs))
        logits = _in_order(pieces)
        for row in rows:
            self._num_tokens[row.sequence] = row.position + 1
        sampled = self._sampler(logits, rows)
        mx.async_eval(sampled.arrays())  # type: ignore[no-untyped-call]
        self._latest_tokens = {row.sequence: sampled.tokens[place : place + 1] for place, row in enumerate(rows)}
        return sampled

    def _divide(self, rows: Sequence[Row], runs: list[list[int]]) -> tuple[list[list[int]], list[int]]:
        """The runs to compute one at a time, and the rows to compute in one forward.

        A sequence without any state joins after its first row, because what an empty cache stands for differs from
        class to class; so does one with several rows in the step. A single row needs no batch.
        """
        joinable = [run[0] for run in runs if len(run) == 1 and not self._caches.are_empty(rows[run[0]].sequence)]
        together = self._fitting(rows, joinable) if self._batches else []
        if len(together) <= 1:
            return runs, []
        return [run for run in runs if run[0] not in together], together

    def _fitting(self, rows: Sequence[Row], places: list[int]) -> list[int]:
        """The rows, the shortest first, that can be padded to one length without more memory than there are blocks."""
        room = self._facts.num_blocks * BLOCK_TOKENS
        by_length = sorted(places, key=lambda place: rows[place].position)
        num_fitting = sum(
            number * (rows[place].position + 1) <= room for number, place in enumerate(by_length, start=1)
        )
        return sorted(by_length[:num_fitting])

    def _run_alone(self, sequence: int, inputs: mx.array) -> mx.array:
        """Logits [tokens, vocabulary] of one sequence."""
        logits: mx.array = self._model(inputs[None], cache=self._caches.take(sequence))[0]
        return logits

    def _run_together(self, place_of: dict[int, int], inputs: mx.array) -> tuple[list[int], mx.array]:
        """Logits of one row of each sequence, in the batch's order, and the places of those rows."""
        members, caches = self._caches.batch(list(place_of))
        places = [place_of[member] for member in members]
        if places != list(range(len(inputs))):
            inputs = inputs[mx.array(places)]
        return places, self._model(inputs[:, None], cache=caches)[:, -1]

    def _prepare(self, sequence: int, position: int) -> None:
        """See that the sequence's caches hold what comes before the position."""
        if position == 0:
            self._caches.begin(sequence)
            self._num_tokens[sequence] = 0
        kept = self._num_tokens.get(sequence)
        if kept != position:
            message = f"sequence {sequence} goes on at position {position}, and its caches hold {kept} tokens"
            raise InternalError(message, hint="it must begin anew")

    def _inputs(self, rows: Sequence[Row]) -> mx.array:
        known = [row.token for row in rows if row.token is not None]
        if len(known) == len(rows):
            return mx.array(known)
        tokens = [self._latest_tokens[row.sequence] if row.token is None else mx.array([row.token]) for row in rows]
        return mx.concatenate(tokens)


def _outcome(step: _Launched) -> Outcome:
    """The step's numbers, as soon as they are there."""
    tokens: Any = [] if step.sampled is None else step.sampled.tokens.tolist()
    are_valid: Any = [] if step.sampled is None else step.sampled.are_valid.tolist()
    finite_chunks = [is_finite.item() for is_finite in step.finite_chunks]
    return Outcome(
        tokens=tuple(int(token) for token in tokens),
        logprobs=() if step.sampled is None else step.sampled.logprobs_of(step.rows),
        failed_rows=tuple(place for place, is_valid in enumerate(are_valid) if not is_valid),
        failed_chunks=tuple(place for place, is_finite in enumerate(finite_chunks) if not is_finite),
        chunks_s=step.chunks_s,
        rows_s=time.perf_counter() - step.began_rows_s if tokens else 0.0,
    )


def _in_order(pieces: list[tuple[list[int], mx.array]]) -> mx.array:
    """Logits of rows that were computed in pieces, back in the rows' order."""
    places = [place for piece, _ in pieces for place in piece]
    logits = pieces[0][1] if len(pieces) == 1 else mx.concatenate([part for _, part in pieces])
    if places == list(range(len(places))):
        return logits
    return logits[mx.array(sorted(range(len(places)), key=places.__getitem__))]
