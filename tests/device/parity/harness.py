"""Serves prompts with the real engine on a model's runner, and asks mlx-lm for the same answers, one at a time."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generate_step

from mlxm.device.loader import LoadedModel
from mlxm.engine.engine import Engine, EngineOptions
from mlxm.engine.pace import PaceOptions
from mlxm.engine.plan import Runner
from mlxm.engine.request import Order
from mlxm.engine.scheduler import SchedulerOptions
from mlxm.frames import Delta, RequestEnded
from mlxm.types import Sampling

LENGTHS = (1, 5, 31, 32, 33, 64, 97)
NUM_TOKENS = 14
STEPS_BETWEEN_ARRIVALS = 3
ODD_CHUNKS = SchedulerOptions(pace=PaceOptions(min_chunk_tokens=7, max_chunk_tokens=19))
Prompts = Mapping[str, Sequence[int]]


@dataclass
class Served:
    """What became of each prompt."""

    tokens: dict[str, list[int]] = field(default_factory=dict)
    cached_tokens: dict[str, int] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)


class Serving:
    """An engine on a runner: prompts arrive one after the other, and are computed by odd pieces."""

    def __init__(self, loaded: LoadedModel, runner: Runner, scheduler: SchedulerOptions = ODD_CHUNKS) -> None:
        options = EngineOptions(vocab_size=loaded.vocab_size, scheduler=scheduler)
        self._engine = Engine(runner, loaded.detokenizer, options)

    @property
    def num_preemptions(self) -> int:
        """How often a sequence had to give way."""
        return self._engine.stats.preemptions

    def serve(self, prompts: Prompts, num_tokens: int = NUM_TOKENS) -> Served:
        """Answer prompts that begin every few steps, so that they join and leave each other."""
        served = Served(tokens={request_id: [] for request_id in prompts})
        waiting = list(prompts.items())
        step = 0
        while waiting or self._engine.has_work:
            if waiting and step % STEPS_BETWEEN_ARRIVALS == 0:
                self._engine.add(_order(*waiting.pop(0), num_tokens))
            for event in self._engine.step():
                _note(served, event)
            step += 1
        return served


def _order(request_id: str, prompt: Sequence[int], num_tokens: int) -> Order:
    greedy = Sampling(temperature=0.0)
    return Order(request_id=request_id, prompt_ids=tuple(prompt), sampling=greedy, max_tokens=num_tokens)


def _note(served: Served, event: object) -> None:
    if isinstance(event, Delta):
        served.tokens[event.request_id] += event.token_ids
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
