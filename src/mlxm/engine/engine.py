"""The step loop: orders in, events out, and in between plans for a runner. One sequence's failure ends one request.

With a runner that runs ahead, the next step is launched before the last one's tokens are known:

    launch 1   launch 2 · collect 1   launch 3 · collect 2   …

A row that ran past a stop is thrown away when its step is collected. Whatever is computed for a sequence counts only
once it is collected; so a step that is lost changes nothing, and is done again.
"""

from __future__ import annotations

import secrets
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import TypeVar

import msgspec

from mlxm.engine.blocks import Chain, num_blocks_for
from mlxm.engine.draft import Flight
from mlxm.engine.output import Detokenizer
from mlxm.engine.plan import BLOCK_TOKENS, Outcome, Runner
from mlxm.engine.request import SEED_BITS, Order, Request, answer_of, seed_of
from mlxm.engine.scheduler import Scheduler, SchedulerOptions
from mlxm.engine.sequence import Sequence
from mlxm.engine.stats import Meter, StepTimes
from mlxm.engine.suspects import Suspects
from mlxm.errors import Conflict, ContextTooLong, InternalError, MlxmError, OutOfMemory
from mlxm.frames import Delta, Fault, RequestEnded, RequestStarted, Stats
from mlxm.types import Usage

Event = RequestStarted | Delta | RequestEnded
ResultT = TypeVar("ResultT")


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine has to know of the model, and how it plans."""

    vocab_size: int
    context_length: int | None = None
    scheduler: SchedulerOptions = SchedulerOptions()


def _random_seed() -> int:
    return secrets.randbits(SEED_BITS)


class Engine:
    """Runs requests on one runner; every request that was added ends with exactly one RequestEnded."""

    def __init__(
        self,
        runner: Runner,
        detokenizer: Detokenizer,
        options: EngineOptions,
        *,
        clock: Callable[[], float] = time.monotonic,
        draw_seed: Callable[[], int] = _random_seed,
    ) -> None:
        self._runner = runner
        self._detokenizer = detokenizer
        self._options = options
        self._clock = clock
        self._draw_seed = draw_seed
        self._facts = runner.facts
        self._scheduler = Scheduler(runner.facts, options.scheduler, runner.forget)
        self._requests: dict[str, Request] = {}
        self._owners: dict[int, tuple[Request, int]] = {}
        """The request and choice of each sequence by its id."""
        self._ids = count(1)
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
        try:
            order.check(self._options.vocab_size)
            max_tokens = self._room(order)
        except MlxmError as error:
            return (RequestEnded(request_id=order.request_id, usage=Usage(), fault=Fault.of(error)),)
        self._requests[order.request_id] = request = self._request(order, max_tokens)
        leader, *others = request.sequences
        self._scheduler.add(leader)
        if self._facts.shares_prefixes:
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

    def _room(self, order: Order) -> int:
        """How long the answer may be; raises when the context or the pool cannot hold what is asked for."""
        num_prompt = len(order.prompt_ids)
        asked = 1 if order.max_tokens is None else order.max_tokens
        wanted = "" if order.max_tokens is None else f" and max_tokens asks for {asked} more"
        context_length = self._options.context_length
        if context_length is not None and num_prompt + asked > context_length:
            raise ContextTooLong(
                f"The prompt has {num_prompt} tokens{wanted}, but the model's context holds {context_length}.",
                hint="Shorten the conversation or lower max_tokens.",
                param="messages",
            )
        num_slots = self._scheduler.pool.num_total * BLOCK_TOKENS
        if num_prompt + asked - 1 > num_slots:
            raise OutOfMemory(
                f"The prompt has {num_prompt} tokens{wanted}: that is {num_blocks_for(num_prompt + asked - 1)} blocks, "
                f"but the KV pool has {self._scheduler.pool.num_total}, for {num_slots} tokens.",
                hint="Shorten the conversation, lower max_tokens, or give the model more memory.",
                param="messages",
            )
        if order.max_tokens is not None:
            return order.max_tokens
        room = num_slots + 1 - num_prompt
        return room if context_length is None else min(room, context_length - num_prompt)

    def _request(self, order: Order, max_tokens: int) -> Request:
        arrival_s = self._clock() if order.arrival_s is None else order.arrival_s
        seed = self._draw_seed() if order.sampling.seed is None else order.sampling.seed
        sequences = [
            Sequence(
                id=next(self._ids),
                prompt_length=len(order.prompt_ids),
                max_tokens=max_tokens,
                tokens=list(order.prompt_ids),
                chain=Chain(order.scope),
                arrival_s=arrival_s,
                priority=order.priority,
                sampling=order.sampling,
                seed=seed_of(seed, choice),
            )
            for choice in range(order.num_choices)
        ]
        request = Request(order, sequences, [answer_of(order, self._detokenizer, max_tokens) for _ in sequences])
        self._owners.update((sequence.id, (request, choice)) for choice, sequence in enumerate(sequences))
        return request

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
        for index, sequence in enumerate(flight.rows):
            if self._advance(sequence, flight.plan.rows[index].position + 1, is_failed=index in outcome.failed_rows):
                self._take(sequence, outcome.tokens[index])

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

    def _take(self, sequence: Sequence, token_id: int) -> None:
        """One more token of a sequence."""
        request, choice = self._owners[sequence.id]
        piece = self._attempt(partial(request.answers[choice].add, token_id))
        if isinstance(piece, Fault):
            self._fail(sequence, piece)
            return
        sequence.tokens.append(token_id)
        self._events.append(
            Delta(
                request_id=request.order.request_id,
                choice=choice,
                seq=request.num_deltas,
                text=piece.text,
                token_ids=(token_id,),
                finish_reason=piece.finish_reason,
            )
        )
        request.num_deltas += 1
        if piece.finish_reason is not None:
            self._finish(sequence, request)

    # ── ends ─────────────────────────────────────────────────────────────────────────────────────

    def _finish(self, sequence: Sequence, request: Request) -> None:
        """One choice is complete, and with the last one the request."""
        self._scheduler.end(sequence)
        request.num_open -= 1
        if request.num_open == 0:
            self._close(request)
            self._events.append(RequestEnded(request_id=request.order.request_id, usage=request.usage))

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
