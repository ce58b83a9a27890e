"""Those who compete in `benchmarks.engine`: all are given prompts, and asked for one step after the other.

Each runs as it does in real life. The peers get what they are best with: BatchGenerator the sizes that mlx_lm.server
gives it and its own greedy sampler, which it applies to the whole batch at once; nobody reads their text; and they run
with the fused kernels that mlx compiles on the CPU by default. Our engine runs as it does in a worker: without.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import mlx.core as mx
from mlx_lm.generate import BatchGenerator, generate_step
from mlx_lm.models.cache import KVCache

from mlxm.device.choice import RunnerOptions, open_runner
from mlxm.device.loader import LoadedModel, use_plain_kernels
from mlxm.engine.blocks import num_blocks_for
from mlxm.engine.engine import Engine, EngineOptions
from mlxm.engine.request import Order
from mlxm.frames import Delta
from mlxm.types import Sampling

Prompt = Sequence[int]
_GREEDY = Sampling(temperature=0.0)
_MANY = 1 << 20


class Contender(Protocol):
    """Computes prompts and answers by steps."""

    def step(self) -> int:
        """Make a step; how many tokens came of it."""
        ...


@contextmanager
def as_in_worker() -> Iterator[None]:
    """Compute as a worker does; the peers before and after are left with mlx's own default."""
    use_plain_kernels()
    try:
        yield
    finally:
        mx.enable_compile()


class MlxmEngine:
    """Our engine, on a runner with room for as many tokens as its prompts and answers will have."""

    def __init__(self, loaded: LoadedModel, options: RunnerOptions) -> None:
        with as_in_worker():
            runner = open_runner(loaded, options)
        self.store = f"{runner.facts.kind} ({runner.facts.why})"
        self._engine = Engine(runner, loaded.detokenizer, EngineOptions(vocab_size=loaded.vocab_size))
        self._num_orders = 0

    def add(self, prompt: Prompt, max_tokens: int) -> str:
        """Ask for an answer; the request's id."""
        self._num_orders += 1
        request_id = str(self._num_orders)
        order = Order(request_id=request_id, prompt_ids=tuple(prompt), sampling=_GREEDY, max_tokens=max_tokens)
        self._engine.add(order)
        return request_id

    def step(self) -> int:
        """Make a step; how many tokens came of it."""
        return len(self.step_of())

    def step_of(self) -> list[str]:
        """Make a step; the ids of the requests that got a token."""
        if not self.has_work:
            raise RuntimeError("every answer is complete")
        with as_in_worker():
            return [event.request_id for event in self._engine.step() if isinstance(event, Delta)]

    @property
    def has_work(self) -> bool:
        """Whether an answer is still to come."""
        return self._engine.has_work


class Peer:
    """mlx-lm's BatchGenerator."""

    def __init__(self, model: Any) -> None:
        self._generator = BatchGenerator(
            model, completion_batch_size=32, prefill_batch_size=8, prefill_step_size=2048, max_tokens=_MANY
        )

    def add_all(self, prompts: Sequence[Prompt], max_tokens: int) -> None:
        """Ask for answers."""
        self._generator.insert([list(prompt) for prompt in prompts], max_tokens=[max_tokens] * len(prompts))
        self.num_open = len(prompts)

    def add_computed(self, caches: list[list[KVCache]]) -> None:
        """Go on where the caches end."""
        self._generator.insert([[1]] * len(caches), caches=caches)
        self.num_open = len(caches)

    def step(self) -> int:
        """Make a step; how many tokens came of it."""
        _, responses = self._generator.next()
        self.num_open -= sum(response.finish_reason is not None for response in responses)
        return len(responses)


class OneAtATime:
    """mlx-lm's generate_step; a step is a token for each sequence in turn."""

    def __init__(self, model: Any, caches: list[list[KVCache]]) -> None:
        start = mx.array([1])
        self._sequences: list[Iterator[object]] = [
            generate_step(start, model, prompt_cache=cache, max_tokens=_MANY) for cache in caches
        ]

    def step(self) -> int:
        """Make a step; how many tokens came of it."""
        for sequence in self._sequences:
            next(sequence)
        return len(self._sequences)


def computed_caches(model: Any, lengths: Sequence[int]) -> list[list[KVCache]]:
    """Caches as they would be after prompts of these lengths; what the keys and values are takes no time to tell."""
    size = model.args
    return [
        [_computed_cache(size.num_key_value_heads, length, size.head_dim) for _ in model.layers] for length in lengths
    ]


def _computed_cache(num_heads: int, length: int, head_dim: int) -> KVCache:
    cache = KVCache()
    cache.state = (*(mx.random.normal((1, num_heads, length, head_dim)) for _ in range(2)), length)
    mx.eval(cache.state[:2])
    return cache


def blocks_for(lengths: Sequence[int]) -> int:
    """The pool that holds sequences of these lengths at once: scratch, and what is promised to nobody, come on top."""
    needed = sum(map(num_blocks_for, lengths))
    return 2 + needed + needed // 64
