"""The step loop: orders in, events out, and in between plans for a runner. One sequence's failure ends one request.

With a runner that runs ahead, the next step is launched before the last one's tokens are known:

    launch 1   launch 2 · collect 1   launch 3 · collect 2   …

A row that ran past a stop is thrown away when its step is collected. Whatever is computed for a sequence counts only
once it is collected; so a step that is lost changes nothing, and is done again.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import groupby
from typing import TypeVar

import msgspec

from mlxm.engine.draft import Flight
from mlxm.engine.guide import Grammars
from mlxm.engine.intake import Intake, Model, random_seed
from mlxm.engine.output import Detokenizer
from mlxm.engine.plan import BLOCK_TOKENS, Outcome, RowLogprobs, Runner
from mlxm.engine.request import Order, Request, token_logprobs
from mlxm.engine.scheduler import Scheduler, SchedulerOptions
from mlxm.engine.sequence import Sequence
from mlxm.engine.stats import Meter, StepTimes
from mlxm.engine.suspects import Suspects
from mlxm.errors import Conflict, InternalError, MlxmError
from mlxm.frames import Delta, Fault, RequestEnded, RequestStarted, Stats
from mlxm.types import TokenLogprobs, Usage

Event = RequestStarted | Delta | RequestEnded
ResultT = TypeVar("ResultT")


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine has to know of the model, and how it plans."""

    vocab_size: int
    context_length: int | None = None
    scheduler: SchedulerOptions = SchedulerOptions()


class Engine:
    """Runs requests on one runner; every request that was added ends with exactly one RequestEnded."""

    def __init__(
        self,
        runner: Runner,
        detokenizer: Detokenizer,
        options: EngineOptions,
        *,
        grammars: Grammars | None = None,
        clock: Callable[[], float] = time.monotonic,
        draw_seed: Callable[[], int] = random_seed,
    ) -> None:
        self._runner = runner
        self._detokenizer = detokenizer
        self._clock = clock
        self._facts = runner.facts
        self._scheduler = Scheduler(runner.facts, options.scheduler, runner.forget)
        model = Model(
            detokenizer=detokenizer,
            vocab_size=options.vocab_size,
            context_length=options.context_length,
            grammars=grammars,
        )
        self._intake = Intake(model, self._scheduler.pool.num_total, clock=clock, draw_seed=draw_seed)
        self._requests: dict[str, Request] = {}
        self._owners: dict[int, tuple[Request, int]] = {}
        """The request and choice of each sequence by its id."""
        self._flights: deque[Flight] = deque()
        self._suspects = Suspects()
        self._events: list[Event] = []
        self._meter = Meter(clock())
        self._num_queried = 0
        self._num_hit = 0

    @property
    def has_work(self) -> bool:
        """Whether there is a step to make."""
        return bool(self._requests or self._flights)

    def has_prompt_over(self, num_tokens: int) -> bool:
        """Whether a running sequence has more of its prompt before it than that."""
        return any(sequence.num_behind > num_tokens for sequence in self._scheduler.running)

    def limit_prompts(self, num_tokens: int | None) -> None:
        """Compute no more prompt tokens in a step than that; None: as many as fit."""
        self._scheduler.pace.limit_tokens = num_tokens

    @property
    def stats(self) -> Stats:
        """How it is doing now."""
        pool = self._scheduler.pool
        stats = Stats(
            blocks_total=pool.num_total,
            blocks_used=pool.num_used,
            blocks_cached=pool.num_cached,
            blocks_free=pool.num_free,
            waste=self._scheduler.count_unused_slots() / max(1, pool.num_used * BLOCK_TOKENS),
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.queue),
            preemptions=self._scheduler.num_preemptions,
            prefix_queried_tokens=self._num_queried,
            prefix_hit_tokens=self._num_hit,
        )
        return self._meter.fill(stats, self._clock())

    # ── orders ───────────────────────────────────────────────────────────────────────────────────

    def add(self, order: Order) -> tuple[Event, ...]:
        """Take an order; the events of one that can never be carried out. Raises Conflict for an id in use."""
        if order.request_id in self._requests:
            raise Conflict(f"A request with the id {order.request_id} is running already.")
        request = self._attempt(partial(self._intake.open, order))
        if isinstance(request, Fault):
            return (RequestEnded(request_id=order.request_id, usage=Usage(), fault=request),)
        self._requests[order.request_id] = request
        self._owners.update((sequence.id, (request, choice)) for choice, sequence in enumerate(request.sequences))
        leader, *others = request.sequences
        self._scheduler.add(leader)
        if self._facts.shares_prefixes or leader.is_scoring:
            leader.siblings = others
        else:
            for sequence in others:
                self._scheduler.add(sequence)
        return ()

    def cancel(self, request_id: str, reason: str) -> tuple[Event, ...]:
        """End a request and free all it holds now; nothing happens when it has ended already."""
        request = self._requests.get(request_id)
        if request is None:
            return ()
        self._close(request)
        return (RequestEnded(request_id=request_id, usage=request.usage, cancelled=reason),)

    def cancel_all(self, reason: str) -> tuple[Event, ...]:
        """End every request."""
        return tuple(event for request_id in list(self._requests) for event in self.cancel(request_id, reason))

    # ── steps ────────────────────────────────────────────────────────────────────────────────────

    def step(self) -> tuple[Event, ...]:
        """Launch a step, if there is one to launch, and collect the one before it, or this one."""
        self._admit()
        suspects = self._suspects.next_group()
        flight = self._scheduler.plan(self._flights[-1] if self._flights else None, suspects)
        if flight is not None:
            self._launch(flight)
        runs_ahead = self._facts.runs_ahead and suspects is None
        if self._flights and (flight is None or not runs_ahead or len(self._flights) > 1):
            self._collect()
        events = tuple(self._events)
        self._events.clear()
        return events

    def _admit(self) -> None:
        for sequence in self._scheduler.admit():
            request, _ = self._owners[sequence.id]
            if not request.is_started:
                request.is_started = True
                self._num_queried += sequence.prompt_length if self._facts.shares_prefixes else 0
                self._events.append(RequestStarted(request_id=request.order.request_id))

    def _launch(self, flight: Flight) -> None:
        result = self._attempt(partial(self._runner.launch, flight.plan))
        if not isinstance(result, Fault):
            self._flights.append(flight)
            return
        goals = _goals([flight])
        if self._flights:
            self._collect()
        self._lose([flight], goals, result)

    def _collect(self) -> None:
        result = self._attempt(self._runner.collect)
        if isinstance(result, Fault):
            lost = list(self._flights)
            self._flights.clear()
            self._lose(lost, _goals(lost), result)
            return
        flight = self._flights.popleft()
        self._scheduler.pace.measure(result, num_chunk_tokens=flight.num_chunk_tokens, num_rows=len(flight.rows))
        self._meter.add(StepTimes(self._clock(), len(flight.rows), result.chunks_s, result.rows_s))
        self._settle(flight, result)

    def _settle(self, flight: Flight, outcome: Outcome) -> None:
        """Take over what was computed for those that are still there."""
        for index, sequence in enumerate(flight.chunks):
            chunk = flight.plan.chunks[index]
            self._advance(sequence, chunk.start + len(chunk.tokens), is_failed=index in outcome.failed_chunks)
        for sequence, places in groupby(range(len(flight.rows)), lambda index: flight.rows[index]):
            self._settle_rows(sequence, flight, outcome, list(places))

    def _settle_rows(self, sequence: Sequence, flight: Flight, outcome: Outcome, places: list[int]) -> None:
        """Take over the rows of one sequence: the prompt's logprobs, the next token, or both."""
        scored: list[TokenLogprobs] = []
        token_id = None
        for place in places:
            row = flight.plan.rows[place]
            if not self._advance(sequence, row.position + 1, is_failed=place in outcome.failed_rows):
                return
            logprobs = outcome.logprobs[place] if outcome.logprobs else None
            if sequence.is_scoring:
                scored += self._score(sequence, row.position, logprobs)
            if row.position + 1 >= sequence.prompt_length:
                token_id = outcome.tokens[place]
        if scored:
            request, choice = self._owners[sequence.id]
            self._events.append(request.prompt_delta(choice, tuple(scored)))
        if token_id is not None:
            self._take(sequence, token_id, logprobs)

    def _score(self, sequence: Sequence, position: int, found: RowLogprobs | None) -> list[TokenLogprobs]:
        """What is known now of the prompt's tokens: before the first one nothing comes."""
        scored = []
        if sequence.num_scored == 0:
            first = sequence.tokens[0]
            scored.append(TokenLogprobs(first, self._detokenizer.raw(first), None))
            sequence.num_scored = 1
        if found is not None and sequence.num_scored == position + 1 < sequence.prompt_length:
            scored.append(token_logprobs(sequence.tokens[position + 1], found, self._detokenizer))
            sequence.num_scored += 1
        return scored

    def _advance(self, sequence: Sequence, end: int, *, is_failed: bool) -> bool:
        """A sequence is computed up to `end`; False when it is not there any more."""
        if sequence.state == "over":
            return False
        if is_failed:
            self._fail(sequence, Fault.of(_not_finite()))
            return False
        num_reused = self._scheduler.computed(sequence, end)
        request, choice = self._owners[sequence.id]
        if choice == 0:
            request.num_cached += num_reused
            self._num_hit += num_reused
        return True

    def _take(self, sequence: Sequence, token_id: int, found: RowLogprobs | None) -> None:
        """One more token of a sequence."""
        delta = self._attempt(partial(self._delta, sequence, token_id, found))
        if isinstance(delta, Fault):
            self._fail(sequence, delta)
            return
        sequence.tokens.append(token_id)
        self._events.append(delta)
        if delta.finish_reason is not None:
            self._finish(sequence)
        elif sequence.guide is not None:
            refreshed = self._attempt(sequence.guide.refresh)
            if isinstance(refreshed, Fault):
                self._fail(sequence, refreshed)

    def _delta(self, sequence: Sequence, token_id: int, found: RowLogprobs | None) -> Delta:
        """What one more token says; with a grammar, the answer may be complete by it."""
        request, choice = self._owners[sequence.id]
        is_complete = sequence.guide is not None and sequence.guide.accept(token_id)
        piece = request.answers[choice].add(token_id, is_complete=is_complete)
        is_wanted = found is not None and sequence.num_logprobs is not None
        logprobs = token_logprobs(token_id, found, self._detokenizer) if found is not None and is_wanted else None
        return request.delta(choice, piece, token_id, logprobs)

    # ── ends ─────────────────────────────────────────────────────────────────────────────────────

    def _finish(self, sequence: Sequence) -> None:
        """One choice is complete, and with the last one the request."""
        request, _ = self._owners[sequence.id]
        self._scheduler.end(sequence)
        self._release_siblings(sequence)
        request.num_open -= 1
        if request.num_open == 0:
            self._close(request)
            self._events.append(RequestEnded(request_id=request.order.request_id, usage=request.usage))

    def _release_siblings(self, leader: Sequence) -> None:
        """Those who waited for its prompt compute theirs: it has read and answered it within one step."""
        siblings, leader.siblings = leader.siblings, []
        for sibling in siblings:
            self._scheduler.add(sibling)

    def _fail(self, sequence: Sequence, fault: Fault) -> None:
        request, _ = self._owners[sequence.id]
        self._close(request)
        self._events.append(RequestEnded(request_id=request.order.request_id, usage=request.usage, fault=fault))

    def _close(self, request: Request) -> None:
        del self._requests[request.order.request_id]
        for sequence in request.sequences:
            if sequence.state != "over":
                self._scheduler.end(sequence)
            del self._owners[sequence.id]

    def _lose(self, flights: list[Flight], goals: dict[Sequence, int], fault: Fault) -> None:
        """Steps came to nothing: whoever was in them alone is at fault, else the culprit is sought among those left."""
        for flight in flights:
            self._scheduler.take_back(flight)
        left = {sequence: goal for sequence, goal in goals.items() if sequence.state == "running"}
        if len(goals) == len(left) == 1:
            self._fail(next(iter(left)), fault)
        else:
            self._suspects.split(left)

    def _attempt(self, work: Callable[[], ResultT]) -> ResultT | Fault:
        """The engine's step boundary: whatever goes wrong becomes a fault that can be shown.

        The error's own text may quote a prompt, so it goes to the log alone.
        """
        try:
            return work()
        except MlxmError as error:
            return Fault.of(error)
        except Exception as error:  # noqa: BLE001  (one sequence's failure must end no other)
            traceback.print_exc(file=sys.stderr)
            kind = type(error).__name__
            return Fault.of(InternalError(f"The engine failed on this request ({kind}).", hint="See the server's log."))


def _goals(flights: list[Flight]) -> dict[Sequence, int]:
    """How far each sequence would have come."""
    return {sequence: sequence.num_launched for flight in flights for sequence in flight.sequences}


def _not_finite() -> InternalError:
    return InternalError("The model's numbers are not finite any more.", hint="Load the model again.")
