"""Grammars, logprobs and penalties on a real tiny model, from the engine's order down to the sampler."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from mlxm.device.loader import LoadedModel
from mlxm.device.paged import PagedStore
from mlxm.device.rows import RowsStore
from mlxm.device.runner import PagedRunner
from mlxm.device.sampler import Sampler
from mlxm.engine.engine import Engine, EngineOptions, Event
from mlxm.engine.guide import Grammars
from mlxm.engine.plan import RunnerFacts
from mlxm.engine.request import Order
from mlxm.frames import Delta, RequestEnded
from mlxm.types import Grammar, Sampling, TokenLogprobs
from tests.device.driver import make_store, prompt, tiny

STORES = pytest.mark.parametrize("make", [PagedStore, RowsStore], ids=["paged", "rows"])
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "ages": {"type": "array", "items": {"enum": [1, 22]}}},
    "required": ["name", "ages"],
    "additionalProperties": False,
}


def engine_of(loaded: LoadedModel, make: Any, *, takes_runs: bool = True) -> Engine:
    """An engine on a real model."""
    store = make_store(make, loaded.model)
    facts = RunnerFacts(
        kind=store.kind,
        why="",
        num_blocks=store.pools.num_blocks,
        max_rows=16,
        shares_prefixes=True,
        runs_ahead=False,
        block_bytes=store.pools.block_bytes,
        takes_runs=takes_runs,
    )
    grammars = Grammars(loaded.detokenizer.to_json, vocab_size=loaded.vocab_size, stop_ids=loaded.stop_ids)
    options = EngineOptions(vocab_size=loaded.vocab_size, context_length=loaded.config.context_length)
    return Engine(PagedRunner(store, Sampler(), facts), loaded.detokenizer, options, grammars=grammars)


def run(engine: Engine, *orders: Order) -> list[Event]:
    """All that is said about some orders."""
    events = [event for order in orders for event in engine.add(order)]
    while engine.has_work:
        events += engine.step()
    assert all(event.fault is None for event in events if isinstance(event, RequestEnded)), events
    return events


def deltas(events: list[Event], name: str) -> list[Delta]:
    """Those of one request."""
    return [event for event in events if isinstance(event, Delta) and event.request_id == name]


def tokens(events: list[Event], name: str) -> list[int]:
    """The tokens of one request."""
    return [token_id for delta in deltas(events, name) for token_id in delta.token_ids]


def order(name: str, number: int, loaded: LoadedModel, **more: Any) -> Order:
    """An order with a prompt of its own."""
    more = {"max_tokens": 400, "sampling": Sampling(temperature=1.0, seed=number), "stop_ids": loaded.stop_ids} | more
    return Order(request_id=name, prompt_ids=tuple(prompt(20 + number, number)), **more)


@STORES
def test_sixteen_rows_with_and_without_grammars(folder: Path, make: Any) -> None:
    """Every constrained answer is valid; the others say what they say among themselves."""
    loaded = tiny("llama", folder)
    grammar = Grammar(kind="json_schema", source=json.dumps(SCHEMA))
    bound = [order(f"bound{number}", number, loaded, grammar=grammar) for number in range(8)]
    free = [order(f"free{number}", 8 + number, loaded, max_tokens=12) for number in range(8)]
    together = run(engine_of(loaded, make), *bound, *free)
    apart = [event for each in free for event in run(engine_of(loaded, make), each)]
    for number in range(8):
        said = deltas(together, f"bound{number}")
        assert said[-1].finish_reason == "stop"
        jsonschema.validate(json.loads("".join(delta.text for delta in said)), SCHEMA)
        assert tokens(together, f"free{number}") == tokens(apart, f"free{number}")


@STORES
def test_a_prompt_is_scored_as_it_would_be_chosen(folder: Path, make: Any) -> None:
    """By runs of rows or by single ones; and an answer's own logprobs are those that it has as a prompt."""
    loaded = tiny("llama", folder)
    first = order(
        "one", 20, loaded, max_tokens=30, num_logprobs=3, sampling=Sampling(temperature=0.0), stop_ids=frozenset()
    )
    said = run(engine_of(loaded, make), first)
    answer = [entry for delta in deltas(said, "one") for entry in delta.logprobs]
    whole = (*first.prompt_ids, *tokens(said, "one"))
    again = Order(request_id="two", prompt_ids=whole, max_tokens=1, num_logprobs=3, prompt_logprobs=True)
    for takes_runs in (True, False):
        scored = run(engine_of(loaded, make, takes_runs=takes_runs), again)
        found = [entry for delta in deltas(scored, "two") if not delta.token_ids for entry in delta.logprobs]
        assert [entry.token_id for entry in found] == list(whole)
        assert found[0].logprob is None
        for mine, other in zip(found[len(first.prompt_ids) :], answer, strict=True):
            agree(mine, other)


def agree(mine: TokenLogprobs, other: TokenLogprobs) -> None:
    """The same token, as likely, with the same others beside it."""
    assert (mine.token_id, mine.raw) == (other.token_id, other.raw)
    assert mine.logprob == pytest.approx(other.logprob, abs=1e-4)
    assert [likely.token_id for likely in mine.top] == [likely.token_id for likely in other.top]
    assert mine.top[0].token_id == mine.token_id


def test_an_answer_has_its_least_length(folder: Path) -> None:
    """Its ends are not chosen before, however likely they are."""
    loaded = tiny("llama", folder)
    every = frozenset(range(0, loaded.vocab_size, 2))
    events = run(
        engine_of(loaded, PagedStore),
        order("one", 3, loaded, stop_ids=every, sampling=Sampling(temperature=0.0, min_tokens=10)),
    )
    said = tokens(events, "one")
    assert len(said) > 10
    assert all(token_id % 2 for token_id in said[:10])
    assert said[-1] % 2 == 0
