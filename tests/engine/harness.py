"""An engine over a scripted runner, with all that it said."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

from tokenizers import Tokenizer, decoders, models

from mlxm.engine.blocks import BlockPool
from mlxm.engine.engine import Engine, EngineOptions, Event
from mlxm.engine.guide import Grammars
from mlxm.engine.output import Detokenizer
from mlxm.engine.pace import PaceOptions
from mlxm.engine.request import Order, seed_of
from mlxm.engine.scheduler import SchedulerOptions
from mlxm.frames import Delta, RequestEnded, RequestStarted
from mlxm.testing.runner import Costs, IllegalPlan, ManualClock, ScriptedRunner, facts_of, scripted_token
from mlxm.tiny import tokenizer
from mlxm.tiny.families import FAMILIES

VOCAB_SIZE = 256
SEED = 7


def character(token_id: int) -> str:
    """Each token is one character; the first 26 are letters."""
    return chr(ord("a") + token_id) if token_id < 26 else chr(0x100 + token_id)


@cache
def detokenizer() -> Detokenizer:
    """From tokens to characters."""
    words = Tokenizer(models.WordLevel({character(token_id): token_id for token_id in range(VOCAB_SIZE)}, "a"))
    words.decoder = decoders.Fuse()
    return Detokenizer(words)


class Grammatical(NamedTuple):
    """A tiny model's tokenizer, and what follows grammars by it."""

    detokenizer: Detokenizer
    grammars: Grammars
    stop_ids: frozenset[int]

    @classmethod
    def of(cls, name: str = "chatml") -> Grammatical:
        """That of a family."""
        family = FAMILIES[name]
        detokenizer = Detokenizer(Tokenizer.from_str(json.dumps(tokenizer.tokenizer_data(family))))
        stop_ids = frozenset(tokenizer.eos_ids(family))
        grammars = Grammars(detokenizer.to_json, vocab_size=tokenizer.VOCAB_SIZE, stop_ids=stop_ids)
        return cls(detokenizer, grammars, stop_ids)


def scripted(
    prompt: Sequence[int],
    num_tokens: int,
    *,
    seed: int = SEED,
    choice: int = 0,
    next_token: Callable[[Sequence[int], int], int] = scripted_token,
) -> tuple[int, ...]:
    """What must follow a prompt, whatever else happens."""
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(next_token(tokens, seed_of(seed, choice)))
    return tuple(tokens[len(prompt) :])


def prompt_of(num_tokens: int, start: int = 0) -> tuple[int, ...]:
    """A prompt unlike those of other starts."""
    return tuple((start * 31 + place * 7 + place // 256) % VOCAB_SIZE for place in range(num_tokens))


def check_blocks(pool: BlockPool, tables: Iterable[Sequence[int]]) -> None:
    """Every block is free, cached or owned by exactly those in whose tables it is."""
    owners = Counter(block for table in tables for block in table)
    everything = [*pool._free, *pool._cached, *owners]
    assert sorted(everything) == list(range(1, pool.num_total + 1))
    assert {block: number for block, number in enumerate(pool._num_owners) if number} == owners
    published = {entry.block: entry for entry in pool._published.values()}
    assert published == {block: entry for block, entry in enumerate(pool._published_as) if entry is not None}
    assert published.keys().isdisjoint(pool._free)
    assert pool._cached.keys() <= published.keys()
    assert pool.num_used == len(owners)


class Harness:
    """Drives an engine by hand."""

    def __init__(
        self,
        *,
        costs: Costs | None = None,
        context_length: int | None = None,
        options: SchedulerOptions | None = None,
        pace: PaceOptions | None = None,
        next_token: Callable[[Sequence[int], int], int] = scripted_token,
        model: Grammatical | None = None,
        **facts: Any,
    ) -> None:
        self.clock = ManualClock(100.0)
        self.runner = ScriptedRunner(facts_of(**facts), next_token=next_token, costs=costs, clock=self.clock)
        scheduling = SchedulerOptions(pace=pace or PaceOptions()) if options is None else options
        self.engine = Engine(
            self.runner,
            detokenizer() if model is None else model.detokenizer,
            EngineOptions(
                vocab_size=VOCAB_SIZE if model is None else tokenizer.VOCAB_SIZE,
                context_length=context_length,
                scheduler=scheduling,
            ),
            grammars=None if model is None else model.grammars,
            clock=self.clock,
            draw_seed=lambda: SEED,
        )
        self.scheduler = self.engine._scheduler
        self.pool = self.scheduler.pool
        self.events: list[Event] = []

    def add(self, request_id: str, prompt: Sequence[int], max_tokens: int | None = 4, **order: Any) -> None:
        """Order something."""
        self.events += self.engine.add(
            Order(request_id=request_id, prompt_ids=tuple(prompt), max_tokens=max_tokens, **order)
        )

    def cancel(self, request_id: str, reason: str = "enough") -> None:
        """Take an order back."""
        self.events += self.engine.cancel(request_id, reason)

    def step(self, num_steps: int = 1) -> tuple[Event, ...]:
        """Make steps; what the last one said."""
        events: tuple[Event, ...] = ()
        for _ in range(num_steps):
            try:
                events = self.engine.step()
            except IllegalPlan as error:
                raise AssertionError(*error.args) from error
            self.events += events
        return events

    def run(self, max_steps: int = 10_000) -> Harness:
        """Make steps until there is nothing to do."""
        for _ in range(max_steps):
            if not self.engine.has_work:
                return self
            self.step()
        raise AssertionError(f"not done after {max_steps} steps: {self.engine.stats}")

    def run_until(self, is_reached: Callable[[], bool], max_steps: int = 1_000) -> Harness:
        """Make steps until something holds."""
        for _ in range(max_steps):
            if is_reached():
                return self
            self.step()
        raise AssertionError(f"not reached after {max_steps} steps")

    def of(self, request_id: str) -> list[Event]:
        """All that was said about a request."""
        return [event for event in self.events if event.request_id == request_id]

    def deltas(self, request_id: str, choice: int = 0) -> list[Delta]:
        """What was said of one choice."""
        return [event for event in self.of(request_id) if isinstance(event, Delta) and event.choice == choice]

    def tokens(self, request_id: str, choice: int = 0) -> tuple[int, ...]:
        """The tokens of one choice."""
        return tuple(token_id for delta in self.deltas(request_id, choice) for token_id in delta.token_ids)

    def text(self, request_id: str, choice: int = 0) -> str:
        """The text of one choice."""
        return "".join(delta.text for delta in self.deltas(request_id, choice))

    def end(self, request_id: str) -> RequestEnded:
        """The one terminal event, which must be the last."""
        events = self.of(request_id)
        assert [isinstance(event, RequestEnded) for event in events] == [False] * (len(events) - 1) + [True]
        end = events[-1]
        assert isinstance(end, RequestEnded)
        return end

    def started(self) -> list[str]:
        """The requests that have left the queue, in that order."""
        return [event.request_id for event in self.events if isinstance(event, RequestStarted)]

    def check_pool(self) -> None:
        """Every block is free, cached or owned by exactly those in whose tables it is."""
        check_blocks(self.pool, [sequence.table for sequence in self.scheduler.running])

    def check_idle(self) -> None:
        """Nothing is held when nothing runs."""
        assert not self.engine.has_work
        assert self.pool.num_used == 0
        assert self.pool.num_free + self.pool.num_cached == self.pool.num_total
        assert self.runner.num_known == 0
        assert (self.scheduler.running, len(self.scheduler.queue)) == ([], 0)

    def check_answers(self, orders: Iterable[tuple[str, Sequence[int], int]]) -> None:
        """Each request has the tokens that it would have had alone."""
        for request_id, prompt, num_tokens in orders:
            assert scripted(prompt, num_tokens) == self.tokens(request_id)
            assert self.end(request_id).fault is None
