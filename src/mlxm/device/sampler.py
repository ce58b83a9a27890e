"""From logits to tokens: the likeliest one, or one drawn by chance that only the row's own seed and position decide.

So a request gets the same tokens whoever runs beside it, whenever it came, and however its prompt was cut.

A row's logits go through these in order, each of which sees what the one before it left:

    repetition_penalty, frequency_penalty and presence_penalty, logit_bias      adjustments
    mask (of a grammar) and banned_ids                                          adjustments
    temperature
    top_k, then top_p of what top_k keeps, then min_p                           truncation

Repetition divides positive logits and multiplies negative ones, of all tokens in the prompt and the answer; presence
and frequency are subtracted, the latter once for each time that the token is in the answer. Logprobs look at the logits
before all of this.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log

import mlx.core as mx
import msgspec

from mlxm.device.adjustments import FORBIDDEN, Adjustments
from mlxm.device.attention import Exponential, exponential
from mlxm.device.logprobs import Logprobs, find_logprobs
from mlxm.device.truncation import Cut, find_thresholds
from mlxm.engine.plan import Row, RowLogprobs

DEFAULT_TEMPERATURE = 1.0
_GREEDY_BELOW = 1e-5
"""A temperature whose reciprocal would overflow asks for the likeliest token as well."""
_POSSIBLE_ABOVE = FORBIDDEN / 10
_NEGLIGIBLE = -55.0
"""A token this far below the likeliest one weighs nothing: e**-55 of it, which no sum in single precision notices."""
_BITS = 23
_MASK = (1 << 64) - 1


class Sampled(msgspec.Struct, frozen=True, kw_only=True):
    """A token for each row, in arrays that may still be under way."""

    tokens: mx.array
    are_valid: mx.array
    """For each row, whether there was a token to choose: nothing is NaN or infinite, and something is allowed."""
    logprobs: Logprobs | None = None

    def arrays(self) -> list[mx.array]:
        """What is to be computed."""
        return [self.tokens, self.are_valid, *([] if self.logprobs is None else self.logprobs.arrays())]

    def logprobs_of(self, rows: Sequence[Row]) -> tuple[RowLogprobs | None, ...]:
        """Those of each row, or nothing when no row wants any."""
        return () if self.logprobs is None else self.logprobs.of_rows(rows)


class Sampler:
    """Chooses a token for each row."""

    def __init__(self, model_temperature: float | None = None) -> None:
        self._temperature = DEFAULT_TEMPERATURE if model_temperature is None else model_temperature
        self._adjustments = Adjustments()

    def __call__(self, logits: mx.array, rows: Sequence[Row]) -> Sampled:
        """Tokens [rows] from logits [rows, vocabulary]."""
        scores = self._adjustments.apply(logits, rows)
        tokens = mx.argmax(scores, axis=-1)
        are_valid = _are_valid(scores, tokens)
        drawing = [place for place, row in enumerate(rows) if not self._is_greedy(row)]
        if drawing:
            places = mx.array(drawing)
            mine = scores[places] if len(drawing) < len(rows) else scores
            tokens[places] = self._draw(mine.astype(mx.float32), [rows[place] for place in drawing])
        return Sampled(tokens=tokens, are_valid=are_valid, logprobs=find_logprobs(logits, tokens, rows))

    def forget(self, sequence: int) -> None:
        """Drop what is kept for a sequence."""
        self._adjustments.forget(sequence)

    def _is_greedy(self, row: Row) -> bool:
        return self._temperature_of(row) < _GREEDY_BELOW or row.sampling.top_k == 1

    def _temperature_of(self, row: Row) -> float:
        asked = row.sampling.temperature
        return self._temperature if asked is None else asked

    def _draw(self, scores: mx.array, rows: Sequence[Row]) -> mx.array:
        """The token in whose share of the row's probability the row's chance falls."""
        exp = exponential()
        scaled = scores * mx.array([exp.factor / self._temperature_of(row) for row in rows])[:, None]
        top = scaled.max(-1, keepdims=True)
        weights = exp.power(scaled, top)
        kept = scaled >= _lowest_kept(scaled, weights, top, rows, exp)
        shares = mx.cumsum(weights * kept, axis=-1)
        chances = mx.array([chance(row.seed, row.position) for row in rows])
        passed = shares <= chances[:, None] * shares[:, -1:]
        return mx.minimum(passed.sum(-1), scores.shape[-1] - 1).astype(mx.uint32)


def chance(seed: int, position: int) -> float:
    """A number from 0 up to but not including 1, even over seeds and positions alike."""
    state = _mix(_mix(seed & _MASK) ^ position)
    return (state >> (64 - _BITS)) / (1 << _BITS)


def _are_valid(scores: mx.array, tokens: mx.array) -> mx.array:
    """For each row, whether a token can be chosen; the likeliest tokens are given."""
    best = mx.take_along_axis(scores, tokens[:, None], axis=1)[:, 0].astype(mx.float32)
    return mx.logical_and(scores.astype(mx.float32).sum(-1) < mx.inf, best > _POSSIBLE_ABOVE)


def _lowest_kept(scaled: mx.array, weights: mx.array, top: mx.array, rows: Sequence[Row], exp: Exponential) -> mx.array:
    """The lowest score [rows, 1] that each row keeps."""
    lowest = top + mx.array([_min_p_distance(row) * exp.factor for row in rows])[:, None]
    cuts = {place: cut for place, row in enumerate(rows) if (cut := _cut_of(row)) is not None}
    if not cuts:
        return lowest
    if len(cuts) == len(rows):
        return mx.maximum(lowest, find_thresholds(scaled, weights, list(cuts.values()), exp)[:, None])
    places = mx.array(list(cuts))
    found = find_thresholds(scaled[places], weights[places], list(cuts.values()), exp)
    return lowest.at[places].maximum(found[:, None])


def _min_p_distance(row: Row) -> float:
    """How far below the likeliest token a logit may be, as a negative number."""
    min_p = row.sampling.min_p
    if min_p is None or min_p <= 0:
        return _NEGLIGIBLE
    return max(min(log(min_p), 0.0), _NEGLIGIBLE)


def _cut_of(row: Row) -> Cut | None:
    """What top_k and top_p ask for, if anything: no top_k at all is given as 0 or -1, no top_p as 1."""
    top_k, top_p = row.sampling.top_k, row.sampling.top_p
    cut = Cut(
        top_k=None if top_k is None or top_k <= 0 else top_k,
        top_p=None if top_p is None or top_p >= 1 else top_p,
    )
    return None if cut.top_k is None and cut.top_p is None else cut


def _mix(number: int) -> int:
    """Spread the differences of 64-bit numbers over all their bits (the finisher of splitmix64)."""
    number = (number + 0x9E3779B97F4A7C15) & _MASK
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & _MASK
    return number ^ (number >> 31)
