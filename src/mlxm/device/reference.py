"""What mlx-lm answers, and how far off a store may be: the measure of the self-check.

How much may differ is measured too. mlx-lm's own numbers change in the last bits with the way in which a prompt is cut,
and in half precision much more than that when attention is computed a little more exactly.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import mlx.core as mx
import msgspec
from mlx_lm.models.cache import make_prompt_cache

from mlxm.device.attention import Handle, install_hook
from mlxm.device.kv_store import LayerShape
from mlxm.device.layout import MIN_SHARED_BLOCKS, MIN_SHARERS
from mlxm.engine.plan import BLOCK_TOKENS

NUM_ROWS = 3
"""Logits that are compared of each sequence: after so many tokens less than all, one less, and so on."""
_PREFIXES = (0, 1, 30, 33, 70)
"""Tokens before the first of those: rows and chunks that end within blocks, at their edges, and cross them."""
_BEYOND_WINDOW = 21
SHARED_TOKENS = MIN_SHARED_BLOCKS * BLOCK_TOKENS
"""So many at the beginning of several sequences are read once for all of them."""
_AFTER_SHARED = 4
_LONGEST_S = 5.0
"""A window is only crossed, and a beginning only shared, when that takes no longer."""
_SLACK = 4.0
_SINGLE, _HALF = (1e-4, 1e-3), (1e-2, 1e-1)
"""What may differ at least, and at most, as a part of the largest logit."""
_FAILURES = (AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""What models raise that do something else with their keys than to attend to them."""
_STRAY = 8
"""One row in so many may differ more in half precision: a router may choose other experts for it."""


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """Sequences of tokens, mlx-lm's logits [rows, vocabulary] of the last rows of each, and how far off they may be."""

    sequences: list[list[int]]
    num_sharers: int
    """How many of them, the last ones, share their first blocks."""
    logits: list[mx.array]
    tolerance: float
    untried: tuple[str, ...]
    """What would have taken too long."""


def compute_reference(model: Any, shapes: Sequence[LayerShape], vocab_size: int) -> Reference:
    """Ask mlx-lm."""
    numbers = random.Random(0)  # noqa: S311  (any tokens do, the same ones every time)

    def sequence(prefix: int) -> list[int]:
        return [numbers.randrange(vocab_size) for _ in range(prefix + NUM_ROWS)]

    sequences = [sequence(prefix) for prefix in _PREFIXES]
    began_s = time.perf_counter()
    logits = [_alone(model, tokens, 1) for tokens in sequences]
    token_s = (time.perf_counter() - began_s) / sum(map(len, sequences))
    windows = sorted({shape.window for shape in shapes if shape.window is not None})
    crossed = [window for window in windows if token_s * (window + _BEYOND_WINDOW) <= _LONGEST_S]
    for window in crossed:
        sequences.append(sequence(window + _BEYOND_WINDOW))
        logits.append(_alone(model, sequences[-1], 1))
    noise = _measure_noise(model, sequences, logits)
    untried = [f"leaving the window of {window} tokens" for window in windows if window not in crossed]
    num_sharers = MIN_SHARERS if token_s * SHARED_TOKENS <= _LONGEST_S else 0
    if num_sharers:
        shared = sequence(SHARED_TOKENS)[:SHARED_TOKENS]
        endings = [sequence(_AFTER_SHARED) for _ in range(num_sharers)]
        logits += _alone_after(model, shared, endings)
        sequences += [[*shared, *ending] for ending in endings]
    else:
        untried.append("sharing prefixes")
    least, most = _SINGLE if logits[0].dtype == mx.float32 else _HALF
    return Reference(
        sequences=sequences,
        num_sharers=num_sharers,
        logits=logits,
        tolerance=min(max(_SLACK * noise, least), most),
        untried=tuple(untried),
    )


def _measure_noise(model: Any, sequences: Sequence[list[int]], logits: Sequence[mx.array]) -> float:
    """How far mlx-lm's numbers are off when prompts are cut, and in half precision, when attention rounds less."""
    noise = compute_error([_alone(model, tokens, 2) for tokens in sequences], logits)
    if logits[0].dtype == mx.float32:
        return noise
    install_hook()
    try:
        finer = [_go_on(model, [_Finer(each) for each in make_prompt_cache(model)], tokens, 1) for tokens in sequences]
    except _FAILURES:
        return noise  # attention of the model's own cannot be reached; stores that suit it compute it as it does
    return max(noise, compute_error(finer, logits))


class _Finer:
    """A cache for which attention is computed in single precision."""

    def __init__(self, own: Any) -> None:
        self._own = own

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[_FinerKeys, _FinerKeys]:
        """A handle in the place of keys and values."""
        handle = _FinerKeys(*self._own.update_and_fetch(keys, values))
        return handle, handle


class _FinerKeys(Handle):
    """Keys and values to attend to in single precision."""

    def __init__(self, keys: mx.array, values: mx.array) -> None:
        self._keys = keys.astype(mx.float32)
        self._values = values.astype(mx.float32)

    def attend(self, queries: mx.array, scale: float, mask: Any, sinks: mx.array | None) -> mx.array:
        """Attention, rounded at its end only."""
        out: mx.array = mx.fast.scaled_dot_product_attention(
            queries.astype(mx.float32), self._keys, self._values, scale=scale, mask=mask, sinks=sinks
        )
        return out.astype(queries.dtype)


def _alone(model: Any, tokens: list[int], num_pieces: int) -> mx.array:
    """Logits after each of the last tokens, the rest read in so many pieces."""
    return _go_on(model, make_prompt_cache(model), tokens, num_pieces)


def _alone_after(model: Any, shared: list[int], endings: list[list[int]]) -> list[mx.array]:
    """The same for each of the endings of a beginning that is read once."""
    caches = make_prompt_cache(model)
    model(mx.array([shared]), cache=caches)
    mx.eval([layer.state for layer in caches])
    return [_go_on(model, copy.deepcopy(caches), ending, 1) for ending in endings]


def _go_on(model: Any, caches: list[Any], tokens: list[int], num_pieces: int) -> mx.array:
    num_read = len(tokens) - NUM_ROWS
    edges = [num_read * piece // num_pieces for piece in range(num_pieces + 1)]
    for begin, end in pairwise(edges):
        if end > begin:
            model(mx.array([tokens[begin:end]]), cache=caches)
            mx.eval([layer.state for layer in caches])
    logits = [model(mx.array([[token]]), cache=caches)[0] for token in tokens[num_read:]]
    joined = mx.concatenate(logits)
    mx.eval(joined)
    return joined


def compute_error(found: Sequence[mx.array], expected: Sequence[mx.array]) -> float:
    """How far a logit is off at most, as a part of the largest one of its row; strays left out in half precision."""
    mine = mx.concatenate(list(found)).astype(mx.float32)
    theirs = mx.concatenate(list(expected)).astype(mx.float32)
    off = mx.max(mx.abs(mine - theirs), axis=-1) / mx.max(mx.abs(theirs), axis=-1)
    errors: Any = mx.sort(mx.where(mx.isnan(off), mx.inf, off)).tolist()
    is_single = expected[0].dtype == mx.float32
    return float(errors[-1 if is_single else -1 - len(errors) // _STRAY])
