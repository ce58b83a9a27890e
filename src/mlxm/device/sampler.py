"""From logits to tokens: the likeliest one, or one drawn by chance that only the row's own seed and position decide.

So a request gets the same tokens whoever runs beside it, whenever it came, and however its prompt was cut.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from mlxm.device.attention import exponential
from mlxm.engine.plan import Row

DEFAULT_TEMPERATURE = 1.0
_GREEDY_BELOW = 1e-5
"""A temperature whose reciprocal would overflow asks for the likeliest token as well."""
_BITS = 23
_MASK = (1 << 64) - 1


class Sampler:
    """Chooses a token for each row."""

    def __init__(self, model_temperature: float | None = None) -> None:
        self._temperature = DEFAULT_TEMPERATURE if model_temperature is None else model_temperature

    def __call__(self, logits: mx.array, rows: Sequence[Row]) -> mx.array:
        """Tokens [rows] from logits [rows, vocabulary]."""
        temperatures = [self._temperature_of(row) for row in rows]
        tokens = mx.argmax(logits, axis=-1)
        drawing = [place for place, temperature in enumerate(temperatures) if temperature >= _GREEDY_BELOW]
        if drawing:
            places = mx.array(drawing)
            drawn = _draw(
                logits[places] if len(drawing) < len(rows) else logits,
                mx.array([temperatures[place] for place in drawing]),
                mx.array([chance(rows[place].seed, rows[place].position) for place in drawing]),
            )
            tokens[places] = drawn
        return tokens

    def _temperature_of(self, row: Row) -> float:
        asked = row.sampling.temperature
        return self._temperature if asked is None else asked


def chance(seed: int, position: int) -> float:
    """A number from 0 up to but not including 1, even over seeds and positions alike."""
    state = _mix(_mix(seed & _MASK) ^ position)
    return (state >> (64 - _BITS)) / (1 << _BITS)


def are_finite(logits: mx.array) -> mx.array:
    """For each row, whether a token can be chosen: nothing is NaN, and something is finite."""
    numbers = logits.astype(mx.float32)
    return mx.logical_and(mx.isfinite(numbers.max(-1)), mx.logical_not(mx.isnan(numbers.sum(-1))))


def _draw(logits: mx.array, temperatures: mx.array, chances: mx.array) -> mx.array:
    """The token in whose share of the row's probability the chance falls."""
    exp = exponential()
    scaled = logits.astype(mx.float32) * (exp.factor / temperatures)[:, None]
    shares = mx.cumsum(exp.power(scaled, scaled.max(-1, keepdims=True)), axis=-1)
    passed = shares <= chances[:, None] * shares[:, -1:]
    return mx.minimum(passed.sum(-1), logits.shape[-1] - 1).astype(mx.uint32)


def _mix(number: int) -> int:
    """Spread the differences of 64-bit numbers over all their bits (the finisher of splitmix64)."""
    number = (number + 0x9E3779B97F4A7C15) & _MASK
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & _MASK
    return number ^ (number >> 31)
