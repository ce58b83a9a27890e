"""Which logits are too low to be chosen: the thresholds of top_k and top_p, found among the likeliest candidates.

Everything is sorted only for rows whose candidates do not hold what is asked for. Whether they do, the host asks on
CPUs only: on a GPU waiting for the answer costs more than sorting, so rows that may need it are sorted.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt

import mlx.core as mx
import msgspec
import numpy as np

from mlxm.device.attention import Exponential
from mlxm.device.kv_store import on_cpu

NUM_CANDIDATES = 256
_UNREACHED = 1e30
"""More than all tokens of any vocabulary weigh together."""


class Cut(msgspec.Struct, frozen=True):
    """What a row keeps: its `top_k` likeliest tokens, and of those the fewest that hold `top_p` of their weight."""

    top_k: int | None
    top_p: float | None


def find_thresholds(scores: mx.array, weights: mx.array, cuts: Sequence[Cut], exp: Exponential) -> mx.array:
    """The lowest score that each row keeps, for scores [rows, vocabulary] and their exponentials.

    Tokens that score the same as the last one kept are kept as well, so that it does not matter in which order they
    come.
    """
    vocab_size = scores.shape[-1]
    some = [place for place, cut in enumerate(cuts) if _fits(cut, vocab_size)]
    rest = [place for place, cut in enumerate(cuts) if not _fits(cut, vocab_size)]
    parts: list[tuple[list[int], mx.array]] = []
    if some:
        group = _Group(scores, weights, cuts, some)
        values = group.scores.shape[-1]
        found, is_enough = group.search(largest_values(group.scores, min(NUM_CANDIDATES, values)), exp)
        if any(_needs_total(cuts[place]) for place in some):
            flags: Sequence[bool] = is_enough.tolist()  # type: ignore[assignment]  # of one axis, it is flat
            rest += [place for place, flag in zip(some, flags, strict=True) if not flag]
        parts.append((some, found))
    if rest:
        group = _Group(scores, weights, cuts, rest)
        found, _ = group.search(_sorted(group.scores), exp)
        parts.append((rest, found))
    return _merged(parts)


def largest_values(numbers: mx.array, count: int) -> mx.array:
    """The `count` largest of each row of [rows, columns], the largest first."""
    ids = find_largest(numbers, count)
    return mx.sort(mx.take_along_axis(numbers, ids, axis=1), axis=-1)[:, ::-1]


def find_largest(numbers: mx.array, count: int) -> mx.array:
    """Where the `count` largest of each row are, in no order.

    They lie in the `count` columns with the largest maxima when a row is laid out in several lines, and the maxima of
    columns are found four times faster than a partition of the whole row is.
    """
    num_rows, size = numbers.shape
    num_lines = _power_of_two_below(isqrt(size // count))
    if num_lines == 1:
        return mx.argpartition(numbers, size - count, axis=-1)[:, size - count :]
    width = -(-size // num_lines)
    if width * num_lines > size:
        numbers = mx.pad(numbers, [(0, 0), (0, width * num_lines - size)], constant_values=-mx.inf)
    lines = numbers.reshape(num_rows, num_lines, width)
    columns = mx.argpartition(lines.max(axis=1), width - count, axis=-1)[:, None, width - count :]
    ids = (columns + (width * mx.arange(num_lines, dtype=mx.uint32))[:, None]).reshape(num_rows, -1)
    candidates = mx.take_along_axis(lines, columns, axis=2).reshape(num_rows, -1)
    best = mx.argpartition(candidates, candidates.shape[-1] - count, axis=-1)[:, -count:]
    return mx.minimum(mx.take_along_axis(ids, best, axis=1), size - 1)


class _Group:
    """Some of the rows."""

    def __init__(self, scores: mx.array, weights: mx.array, cuts: Sequence[Cut], places: list[int]) -> None:
        is_whole = len(places) == scores.shape[0]
        self.scores = scores if is_whole else scores[mx.array(places)]
        self._weights = weights if is_whole else weights[mx.array(places)]
        self._cuts = [cuts[place] for place in places]

    def search(self, candidates: mx.array, exp: Exponential) -> tuple[mx.array, mx.array]:
        """Thresholds among the candidates, which come the largest first, and whether those are all that is needed."""
        num_candidates = candidates.shape[-1]
        sums = mx.cumsum(exp.power(candidates, candidates[:, :1]), axis=-1)
        limits = [num_candidates if cut.top_k is None else min(cut.top_k, num_candidates) for cut in self._cuts]
        last = mx.array([limit - 1 for limit in limits])
        total = mx.take_along_axis(sums, last[:, None], axis=1)[:, 0]
        if any(cut.top_k is None for cut in self._cuts):
            total = mx.where(mx.array([cut.top_k is None for cut in self._cuts]), self._weights.sum(-1), total)
        portions = mx.array([_UNREACHED if cut.top_p is None else cut.top_p for cut in self._cuts])
        bounds = total * portions
        num_passed = (sums < bounds[:, None]).astype(mx.int32).sum(-1)
        lowest = mx.take_along_axis(candidates, mx.minimum(num_passed, last)[:, None], axis=1)[:, 0]
        is_cut = mx.array([cut.top_k is not None for cut in self._cuts])
        return lowest, mx.logical_or(is_cut, sums[:, -1] >= bounds)


def _fits(cut: Cut, vocab_size: int) -> bool:
    """Whether the candidates are enough for the row, as far as the host knows."""
    if vocab_size <= NUM_CANDIDATES:
        return True
    return on_cpu() if cut.top_k is None else min(cut.top_k, vocab_size) <= NUM_CANDIDATES


def _sorted(numbers: mx.array) -> mx.array:
    """Each row, the largest number first; NumPy sorts on CPUs four times faster than MLX."""
    ascending = mx.array(np.sort(np.asarray(numbers))) if on_cpu() else mx.sort(numbers, axis=-1)
    return ascending[:, ::-1]


def _needs_total(cut: Cut) -> bool:
    return cut.top_k is None


def _merged(parts: Sequence[tuple[list[int], mx.array]]) -> mx.array:
    """One threshold per row; what was found later replaces what was found before."""
    position = {}
    offset = 0
    for places, _ in parts:
        position.update({place: offset + number for number, place in enumerate(places)})
        offset += len(places)
    whole = parts[0][1] if len(parts) == 1 else mx.concatenate([found for _, found in parts])
    return whole[mx.array([position[place] for place in sorted(position)])]


def _power_of_two_below(number: int) -> int:
    """The largest power of two that is not above the number; 1 for 0."""
    return 1 << max(0, number.bit_length() - 1)
