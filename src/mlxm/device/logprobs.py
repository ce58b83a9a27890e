"""How likely the model held the chosen tokens, and which ones it held likeliest: found on the device.

They are of the model's own distribution, log_softmax of its logits: before temperature, penalties, masks, truncation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import msgspec

from mlxm.device.attention import exponential
from mlxm.device.truncation import find_largest
from mlxm.engine.plan import Row, RowLogprobs

_MOST_NAMED = 20
"""So many are always looked for, so that which of several equally likely ones is named does not depend on others."""


class Logprobs(msgspec.Struct, frozen=True, kw_only=True):
    """Of those rows that want them, in arrays that may still be under way."""

    places: tuple[int, ...]
    chosen: mx.array
    likely_ids: mx.array | None = None
    likely: mx.array | None = None

    def arrays(self) -> list[mx.array]:
        """What is to be computed."""
        return [array for array in (self.chosen, self.likely_ids, self.likely) if array is not None]

    def of_rows(self, rows: Sequence[Row]) -> tuple[RowLogprobs | None, ...]:
        """One per row, None for those that want none."""
        found: list[RowLogprobs | None] = [None] * len(rows)
        chosen = _listed(self.chosen)
        ids, values = _listed(self.likely_ids), _listed(self.likely)
        for number, place in enumerate(self.places):
            top = _first(ids[number], values[number], _num_named(rows[place])) if ids else ()
            found[place] = RowLogprobs(chosen[number], top)
        return tuple(found)


def find_logprobs(logits: mx.array, tokens: mx.array, rows: Sequence[Row]) -> Logprobs | None:
    """Logprobs of the chosen tokens or of the rows' targets; None if no row wants any."""
    places = [place for place, row in enumerate(rows) if row.num_logprobs is not None or row.target is not None]
    if not places:
        return None
    if len(places) < len(rows):
        logits, tokens = logits[mx.array(places)], tokens[mx.array(places)]
    numbers = logits.astype(mx.float32)
    exp = exponential()
    largest = numbers.max(-1, keepdims=True)
    weights = exp.power(numbers * exp.factor, largest * exp.factor).sum(-1, keepdims=True)
    normaliser = largest + mx.log(weights)
    targets = [rows[place].target for place in places]
    if any(target is not None for target in targets):
        known = mx.array([0 if target is None else target for target in targets], dtype=mx.uint32)
        tokens = mx.where(mx.array([target is None for target in targets]), tokens, known)
    chosen = (mx.take_along_axis(numbers, tokens[:, None], axis=1) - normaliser)[:, 0]
    most = max(_num_named(rows[place]) for place in places)
    if not most:
        return Logprobs(places=tuple(places), chosen=chosen)
    ids = find_largest(numbers, min(max(most, _MOST_NAMED), numbers.shape[-1]))
    likely = mx.take_along_axis(numbers, ids, axis=1) - normaliser
    return Logprobs(places=tuple(places), chosen=chosen, likely_ids=ids, likely=likely)


def _num_named(row: Row) -> int:
    return 0 if row.num_logprobs is None else row.num_logprobs


def _first(ids: Sequence[int], values: Sequence[float], count: int) -> tuple[tuple[int, float], ...]:
    """The likeliest ones; of equally likely ones the lower id comes first."""
    ranked = sorted((-value, token) for token, value in zip(ids, values, strict=True))
    return tuple((token, -negated) for negated, token in ranked[:count])


def _listed(array: mx.array | None) -> list[Any]:
    if array is None:
        return []
    numbers: Any = array.tolist()
    return list(numbers)
