"""One sequence at a time with mlx-lm's own parts: the simplest engine that is right."""

from __future__ import annotations

import secrets
from collections.abc import Generator, Iterator
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.sample_utils import make_sampler

from mlxm.device.loader import LoadedModel
from mlxm.errors import InternalError
from mlxm.types import Sampling

PREFILL_TOKENS = 512
DEFAULT_TEMPERATURE = 1.0
_GREEDY_BELOW = 1e-5
"""A temperature whose reciprocal would overflow asks for the likeliest token as well."""
_SEED_VALUES = 1 << 64


def generate(
    loaded: LoadedModel, prompt_ids: tuple[int, ...], sampling: Sampling, *, max_tokens: int
) -> Generator[int | None]:
    """Token ids, and a None after each piece of the prompt so that the caller can leave in between.

    It goes on past stop tokens: when to stop is the caller's to say, by closing the iterator.
    """
    cache = make_prompt_cache(loaded.model)
    prompt = mx.array(prompt_ids)
    for _ in _prefill(loaded.model, prompt[:-1], cache):
        yield None
    mx.random.seed(secrets.randbits(64) if sampling.seed is None else sampling.seed % _SEED_VALUES)
    steps = generate_step(
        prompt[-1:],
        loaded.model,
        max_tokens=max_tokens,
        sampler=make_sampler(temp=_temperature(loaded, sampling)),
        prompt_cache=cache,
    )
    for token_id, logprobs in steps:
        if not mx.isfinite(logprobs[token_id]).item():
            raise InternalError("The model's numbers are not finite any more.", hint="Load the model again.")
        yield int(token_id)


def _prefill(model: Any, prompt: mx.array, cache: list[Any]) -> Iterator[None]:
    for start in range(0, prompt.size, PREFILL_TOKENS):
        model(prompt[None, start : start + PREFILL_TOKENS], cache=cache)
        mx.eval([layer.state for layer in cache])
        mx.clear_cache()
        yield


def _temperature(loaded: LoadedModel, sampling: Sampling) -> float:
    asked = (sampling.temperature, loaded.config.temperature, DEFAULT_TEMPERATURE)
    temperature = next(value for value in asked if value is not None)
    return temperature if temperature >= _GREEDY_BELOW else 0.0
