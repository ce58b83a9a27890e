"""Serves prompts with the real engine on a model's runner, and asks mlx-lm for the same answers, one at a time."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generate_step

from mlxm.device.batch_build import ALONE_KIND, BATCHED_KIND
from mlxm.device.batch_caches import BatchCacheRunner
from mlxm.device.choice import CANDIDATES
from mlxm.device.kv_store import read_shapes
from mlxm.device.loader import LoadedModel
from mlxm.device.runner import PagedRunner
from mlxm.device.sampler import Sampler
from mlxm.engine.engine import Engine, EngineOptions
from mlxm.engine.pace import PaceOptions
from mlxm.engine.plan import Runner, RunnerFacts
from mlxm.engine.request import Order
from mlxm.engine.scheduler import SchedulerOptions
from mlxm.frames import Delta, RequestEnded
from mlxm.types import Sampling

LENGTHS = (1, 5, 31, 32, 33, 64, 97)
NUM_TOKENS = 14
STEPS_BETWEEN_ARRIVALS = 3
ODD_CHUNKS = SchedulerOptions(pace=PaceOptions(min_chunk_tokens=7, max_chunk_tokens=19))
GREEDY = Sampling(temperature=0.0)
Prompts = Mapping[str, Sequence[int]]


@dataclass
class Served:
    """What became of each prompt."""

    tokens: dict[str, list[int]] = field(default_factory=dict)
    cached_tokens: dict[str, int] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)


def open_kind(
    loaded: LoadedModel, kind: str, num_blocks: int, *, runs_ahead: bool = False, sampler: Sampler | None = None
) -> Runner:
    """A runner of a kind with so many blocks; where they hold nothing, they are counted all the same."""
    sampler = Sampler() if sampler is None else sampler
    is_paged = kind not in (BATCHED_KIND, ALONE_KIND)
    facts = RunnerFacts(
        kind=kind,
        why="",
        num_blocks=num_blocks,
        max_rows=8,
        shares_prefixes=is_paged,
        runs_ahead=runs_ahead,
        block_bytes=0,
    )
    if not is_paged:
        return BatchCacheRunner(loaded.model, sampler, facts, batches=kind == BATCHED_KIND)
    make = next(each.make for family in CANDIDATES for each in family if each.kind == kind)
    return PagedRunner(make(loaded.model, read_shapes(loaded.model), num_blocks), sampler, facts)


class Serving:
    """An engine on a runner: prompts arrive one after the other, and are computed by odd pieces."""

    def __init__(self, loaded: LoadedModel, runner: Runner, scheduler: SchedulerOptions = ODD_CHUNKS) -> None:
        options = EngineOptions(vocab_size=loaded.vocab_size, scheduler=scheduler)
        self.engine = Engine(runner, loaded.detokenizer, options)

    @property
    def num_preemptions(self) -> int:
        """How often a sequence had to give way."""
        return self.engine.stats.preemptions

    def check_idle(self) -> None:
        """Nothing is held when nothing runs."""
        stats = self.engine.stats
        assert not self.engine.has_work
        assert (stats.blocks_used, stats.running, stats.waiting) == (0, 0, 0)
        assert stats.blocks_free + stats.blocks_cached == stats.blocks_total

    def serve(self, prompts: Prompts, num_tokens: int = NUM_TOKENS) -> Served:
        """Answer prompts that begin every few steps, so that they join and leave each other."""
        served = Served(tokens={request_id: [] for request_id in prompts})
        waiting = list(prompts.items())
        step = 0
        while waiting or self.engine.has_work:
            if waiting and step % STEPS_BETWEEN_ARRIVALS == 0:
                self.engine.add(order_of(*waiting.pop(0), num_tokens))
            for event in self.engine.step():
                note(served, event)
            step += 1
        return served


def order_of(request_id: str, prompt: Sequence[int], num_tokens: int, **others: Any) -> Order:
    """A request for the likeliest tokens, if nothing else is said."""
    facts = {"sampling": GREEDY, "max_tokens": num_tokens, **others}
    return Order(request_id=request_id, prompt_ids=tuple(prompt), **facts)


def note(served: Served, event: object) -> None:
    """Add what an event says; a choice but the first goes by the request's name and its number."""
    if isinstance(event, Delta):
        name = f"{event.request_id}.{event.choice}" if event.choice else event.request_id
        served.tokens.setdefault(name, []).extend(event.token_ids)
    elif isinstance(event, RequestEnded):
        served.cached_tokens[event.request_id] = event.usage.cached_tokens
        if event.fault is not None:
            served.faults[event.request_id] = event.fault.message


def random_prompts(lengths: Sequence[int], *, seed: int = 1) -> dict[str, list[int]]:
    """Prompts of ordinary tokens, named by their lengths."""
    numbers = random.Random(seed)
    return {str(length): [numbers.randrange(10, 1000) for _ in range(length)] for length in lengths}


def answer_alone(model: Any, prompt: Sequence[int], num_tokens: int = NUM_TOKENS) -> list[int]:
    """What mlx-lm answers."""
    return [int(token) for token, _ in generate_step(mx.array(list(prompt)), model, max_tokens=num_tokens)]
