"""Attention over a pool of blocks in plain MLX operations, and the one hook by which mlx-lm's models reach it.

mlx-lm's models call `mlx_lm.models.base.scaled_dot_product_attention` with what their cache returned as keys. When that
is a handle of ours, the handle computes; everything else goes on to mlx-lm's own function.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import mlx.core as mx
import msgspec
from mlx_lm.models import base

from mlxm.device.kv_store import LayerPool, on_cpu

NEVER = -1e30
"""The score of a token that is not looked at: far below any other, and finite, so that differences stay finite."""
_HOOKED = "scaled_dot_product_attention"
_LOG2_E = 1.4426950408889634
_ROUNDING = 1.5 * 2**23
"""Added to a float32 it leaves no bit for fractions, and the integer part in the lowest bits."""
_EXP2 = (1.0, 0.69314698, 0.24022242, 0.05550734, 0.00967151, 0.00132647)
"""2**x for |x| <= 1/2, by rising powers of x; the largest relative error is 9e-8."""


# ── exponentials ─────────────────────────────────────────────────────────────────────────────────


class Exponential(msgspec.Struct, frozen=True):
    """`power(factor * x, factor * largest)` is e**(x - largest)."""

    power: Callable[[mx.array, mx.array], mx.array]
    factor: float


def exponential() -> Exponential:
    """The fastest one here: mlx's own is vectorised on GPUs, and four times slower than a polynomial on x86 CPUs."""
    return Exponential(exp2_difference, _LOG2_E) if on_cpu() else Exponential(_exp_difference, 1.0)


def _exp_difference(x: mx.array, largest: mx.array) -> mx.array:
    return mx.exp(x - largest)


def exp2_difference(x: mx.array, largest: mx.array) -> mx.array:
    """2**(x - largest) of float32 numbers none of which is larger, to 3e-7; it stays at 2**-126 below.

    In two pieces because a view as other numbers cannot be compiled for any shape.
    """
    fraction, shifted = _exp2_fraction(x, largest)
    return _add_exponent(fraction.view(mx.int32), shifted.view(mx.int32)).view(mx.float32)


@partial(mx.compile, shapeless=True)
def _exp2_fraction(x: mx.array, largest: mx.array) -> tuple[mx.array, mx.array]:
    """2 to the power of what is left of the difference when it is rounded, and the rounded difference in low bits."""
    x = mx.maximum(x - largest, -126.0)
    shifted = x + _ROUNDING
    rest = x - (shifted - _ROUNDING)
    fraction = _EXP2[5] * rest + _EXP2[4]
    for coefficient in _EXP2[3::-1]:
        fraction = fraction * rest + coefficient
    return fraction, shifted


@partial(mx.compile, shapeless=True)
def _add_exponent(fraction: mx.array, shifted: mx.array) -> mx.array:
    return fraction + mx.left_shift(shifted, 23)


# ── rows: one query each, over pairs of a row and a block ────────────────────────────────────────


class SharedRun(msgspec.Struct, frozen=True):
    """Blocks that several rows look at whole: `blocks` are ids [heads, blocks] into a pool's blocks."""

    rows: mx.array | None
    """Which rows; None for all of them in order."""
    blocks: mx.array


class RowPairs(msgspec.Struct, frozen=True, kw_only=True):
    """Which row looks at which block, in ids that the layers share.

    Pairs lie in the order of their blocks, so that the pool is read from its beginning to its end.
    """

    rows: mx.array
    """The row of each pair."""
    members: mx.array
    """[rows, pairs], one where the pair is the row's: a product with it adds up each row's pairs."""
    bias: mx.array
    """[pairs, 1, 1, 32], NEVER for tokens that the row does not look at."""
    query_ids: mx.array
    block_ids: mx.array
    pair_ids: mx.array
    """[pairs, heads] into [rows * heads], into the pool's blocks, and into [pairs * heads]."""
    shared: tuple[SharedRun, ...] = ()


def attend_rows(
    queries: mx.array, pool: LayerPool, pairs: RowPairs, *, scale: float, sinks: mx.array | None, exp: Exponential
) -> mx.array:
    """Attention of [rows, heads, dim], each over its own blocks: scores per pair, then merged per row.

    All scores of a row are taken relative to its largest one, so that pairs and shared runs can simply be added.
    """
    num_rows, num_heads, dim = queries.shape
    kv_heads = pool.shape.heads
    repeats = num_heads // kv_heads
    queries = (queries * (scale * exp.factor)).reshape(num_rows, kv_heads, repeats, dim)
    keys = pool.key_blocks.swapaxes(-1, -2)
    flat = queries.reshape(num_rows * kv_heads, repeats, dim)
    scores = _single(mx.gather_mm(flat, keys, pairs.query_ids, pairs.block_ids)) + pairs.bias
    floor = None if sinks is None else (sinks.astype(mx.float32) * exp.factor).reshape(1, kv_heads, repeats)
    top = mx.broadcast_to(mx.array(NEVER) if floor is None else floor, (num_rows, kv_heads, repeats))
    top = top.at[pairs.rows].maximum(scores.max(-1))
    runs = [_score_run(queries, pool, run) for run in pairs.shared]
    for run in runs:
        top = run.raise_top(top)
    weights = exp.power(scores, top[pairs.rows][..., None])
    num_pairs = weights.shape[0]
    total = (pairs.members @ weights.sum(-1).reshape(num_pairs, -1)).reshape(num_rows, kv_heads, repeats, 1)
    flat = weights.reshape(num_pairs * kv_heads, repeats, -1).astype(pool.values.dtype)
    mixed = _single(mx.gather_mm(flat, pool.value_blocks, pairs.pair_ids, pairs.block_ids))
    out = (pairs.members @ mixed.reshape(num_pairs, -1)).reshape(num_rows, kv_heads, repeats, -1)
    for run in runs:
        total, out = run.add(total, out, top, pool, exp)
    if floor is not None:
        total = total + exp.power(floor, top)[..., None]
    return (out / total).reshape(num_rows, num_heads, -1)


def _single(numbers: mx.array) -> mx.array:
    """The numbers in float32, finite where half precision overflowed: zero times infinity would reach other rows."""
    return numbers if numbers.dtype == mx.float32 else mx.clip(numbers.astype(mx.float32), NEVER, -NEVER)


class _ScoredRun(msgspec.Struct, frozen=True):
    """A shared run and its scores [kv heads, tokens, rows * repeats].

    Tokens come first because MLX finds the largest of a column, and the sum, several times faster than of a row.
    """

    run: SharedRun
    scores: mx.array

    def raise_top(self, top: mx.array) -> mx.array:
        """Each row's largest score, seen the run's."""
        _, kv_heads, repeats = top.shape
        largest = self.scores.max(-2).reshape(kv_heads, -1, repeats).swapaxes(0, 1)
        return mx.maximum(top, largest) if self.run.rows is None else top.at[self.run.rows].maximum(largest)

    def add(
        self, total: mx.array, out: mx.array, top: mx.array, pool: LayerPool, exp: Exponential
    ) -> tuple[mx.array, mx.array]:
        """Each row's sum of weights and weighted sum of values, with the run's."""
        _, kv_heads, repeats = top.shape
        rows = self.run.rows
        top = top if rows is None else top[rows]
        weights = exp.power(self.scores, top.swapaxes(0, 1).reshape(kv_heads, 1, -1))
        values = mx.take(pool.value_blocks, self.run.blocks, axis=0).reshape(kv_heads, -1, pool.shape.value_dim)
        sums = weights.sum(-2).reshape(kv_heads, -1, repeats, 1).swapaxes(0, 1)
        mixed = (weights.astype(values.dtype).swapaxes(-1, -2) @ values).astype(mx.float32)
        mixed = mixed.reshape(kv_heads, -1, repeats, pool.shape.value_dim).swapaxes(0, 1)
        if rows is None:
            return total + sums, out + mixed
        return total.at[rows].add(sums), out.at[rows].add(mixed)


def _score_run(queries: mx.array, pool: LayerPool, run: SharedRun) -> _ScoredRun:
    """One product of all the queries with the run's keys, which are brought together for it."""
    _, kv_heads, _, dim = queries.shape
    mine = queries if run.rows is None else queries[run.rows]
    keys = mx.take(pool.key_blocks, run.blocks, axis=0).reshape(kv_heads, -1, dim)
    scores = keys @ mine.swapaxes(0, 1).reshape(kv_heads, -1, dim).swapaxes(-1, -2)
    return _ScoredRun(run, _single(scores))


# ── chunks: many queries of one sequence ─────────────────────────────────────────────────────────


class Span(msgspec.Struct, frozen=True):
    """Keys from `start` to `stop`, and for those that not every query looks at, a bias [keys, repeats * queries]."""

    start: int
    stop: int
    bias: mx.array | None = None


class Tile(msgspec.Struct, frozen=True):
    """A run of queries and the keys that they look at."""

    start: int
    stop: int
    spans: tuple[Span, ...]


def attend_tiles(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    tiles: Sequence[Tile],
    *,
    scale: float,
    sinks: mx.array | None,
    exp: Exponential,
) -> mx.array:
    """Attention of [heads, queries, dim] over [kv heads, keys, dim], a tile at a time, in float32.

    Keys that no query of a tile looks at are not computed, and scores stay small enough for the processor's caches.
    """
    num_heads, _, dim = queries.shape
    kv_heads = keys.shape[0]
    queries = (queries.astype(mx.float32) * (scale * exp.factor)).reshape(kv_heads, num_heads // kv_heads, -1, dim)
    keys, values = keys.astype(mx.float32), values.astype(mx.float32)
    out = []
    for tile in tiles:
        num_queries = tile.stop - tile.start
        mine = queries[:, :, tile.start : tile.stop].reshape(kv_heads, -1, dim)
        floor = None if sinks is None else mx.repeat(sinks.astype(mx.float32) * exp.factor, num_queries)
        mixed = _attend_tile(mine, keys, values, tile.spans, floor, exp)
        out.append(mixed.reshape(num_heads, num_queries, -1))
    return out[0] if len(out) == 1 else mx.concatenate(out, axis=1)


def _attend_tile(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    spans: Sequence[Span],
    floor: mx.array | None,
    exp: Exponential,
) -> mx.array:
    """[kv heads, repeats * queries, dim]; scores are [kv heads, keys, repeats * queries], as in a shared run."""
    scores = []
    for span in spans:
        product = keys[:, span.start : span.stop] @ queries.swapaxes(-1, -2)
        scores.append(product if span.bias is None else product + span.bias)
    top = scores[0].max(-2, keepdims=True)
    for more in scores[1:]:
        top = mx.maximum(top, more.max(-2, keepdims=True))
    if floor is not None:
        floor = floor.reshape(top.shape)
        top = mx.maximum(top, floor)
    weights = [exp.power(each, top) for each in scores]
    total = sum((each.sum(-2, keepdims=True) for each in weights[1:]), weights[0].sum(-2, keepdims=True))
    if floor is not None:
        total = total + exp.power(floor, top)
    parts = [
        each.swapaxes(-1, -2) @ values[:, span.start : span.stop] for each, span in zip(weights, spans, strict=True)
    ]
    return sum(parts[1:], parts[0]) / total.swapaxes(-1, -2)


# ── the hook ─────────────────────────────────────────────────────────────────────────────────────


class Handle(ABC):
    """What stands for keys and values that lie in a pool."""

    @abstractmethod
    def attend(self, queries: mx.array, scale: float, mask: Any, sinks: mx.array | None) -> mx.array:
        """Attention of [tokens, heads, 1, dim] over what the handle stands for."""


class Hook:
    """mlx-lm's attention function with a way aside for handles."""

    def __init__(self, original: Callable[..., mx.array]) -> None:
        self.original = original

    def __call__(
        self,
        queries: mx.array,
        keys: Any,
        values: Any,
        cache: Any,
        scale: float,
        mask: Any,
        sinks: mx.array | None = None,
    ) -> mx.array:
        """Attention, with mlx-lm's own parameters."""
        if isinstance(keys, Handle):
            return keys.attend(queries, scale, mask, sinks)
        return self.original(queries, keys, values, cache=cache, scale=scale, mask=mask, sinks=sinks)


def install_hook() -> None:
    """Put the hook in the place of mlx-lm's function, in its module and in those of models that imported it by name.

    Installing it again reaches the models that were imported since.
    """
    current = base.scaled_dot_product_attention
    hook = current if isinstance(current, Hook) else Hook(current)
    modules = [module for name, module in list(sys.modules.items()) if name.startswith("mlx_lm.models.")]
    for module in modules:
        if vars(module).get(_HOOKED) in (hook, hook.original):
            setattr(module, _HOOKED, hook)
