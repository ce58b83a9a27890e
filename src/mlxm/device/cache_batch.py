"""What sequences keep in mlx-lm's own caches: alone, or several of them as one batch which they join and leave.

mlx-lm names the operations of its caches by convention, without a class in common, so its objects are Any here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models.cache import ArraysCache, CacheList, KVCache, RotatingKVCache, make_prompt_cache

_MERGEABLE = (ArraysCache, KVCache, RotatingKVCache)


class SequenceCaches:
    """The caches of every sequence, and which of them are batched at present."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._alone: dict[int, list[Any]] = {}
        self._members: list[int | None] = []
        """Of each row of the batch; None of one that has left, until the batch is next put together."""
        self._batched: list[Any] = []

    def begin(self, sequence: int) -> None:
        """Give the sequence empty caches."""
        self.forget(sequence)
        self._alone[sequence] = make_prompt_cache(self._model)

    def take(self, sequence: int) -> list[Any]:
        """The sequence's own caches, one per layer that has one; it leaves the batch for them."""
        if sequence in self._members:
            place = self._members.index(sequence)
            own = [layer.extract(place) for layer in self._batched]
            mx.async_eval(arrays_of(own))  # type: ignore[no-untyped-call]  # they would hold the whole batch in memory
            self._alone[sequence] = own
            self._leave(place)
        return self._alone[sequence]

    def are_empty(self, sequence: int) -> bool:
        """Whether nothing was computed for the sequence yet."""
        return sequence in self._alone and all(layer.empty() for layer in self._alone[sequence])

    def batch(self, sequences: Sequence[int]) -> tuple[list[int], list[Any]]:
        """One set of caches for exactly these sequences, and the order in which it holds them."""
        for member in list(self._members):
            if member is not None and member not in sequences:
                self.take(member)
        stayed = self._close_gaps()
        joining = [sequence for sequence in sequences if sequence not in stayed]
        if joining:
            self._join(joining)
        self._members = [*stayed, *joining]
        return [*stayed, *joining], self._batched

    def forget(self, sequence: int) -> None:
        """Drop what is kept for the sequence, if anything."""
        self._alone.pop(sequence, None)
        if sequence in self._members:
            self._leave(self._members.index(sequence))

    def _leave(self, place: int) -> None:
        self._members[place] = None
        if all(member is None for member in self._members):
            self._members, self._batched = [], []

    def _close_gaps(self) -> list[int]:
        """Those who are still in the batch; every row of it is one of theirs then."""
        places = [place for place, member in enumerate(self._members) if member is not None]
        if len(places) < len(self._members):
            for layer in self._batched:
                layer.filter(places)
        return [member for member in self._members if member is not None]

    def _join(self, joining: Sequence[int]) -> None:
        own = [self._alone.pop(sequence) for sequence in joining]
        merged = [layers[0].merge(list(layers)) for layers in zip(*own, strict=True)]
        if self._batched:
            for batched, layer in zip(self._batched, merged, strict=True):
                batched.extend(layer)
        else:
            self._batched = merged


def arrays_of(caches: Iterable[Any]) -> list[mx.array]:
    """Every array that the caches hold."""
    leaves: Any = tree_flatten([layer.state for layer in caches])
    return [leaf for _, leaf in leaves if isinstance(leaf, mx.array)]


def find_unmergeable(caches: Iterable[Any]) -> str | None:
    """The class that mlx-lm cannot batch, if there is one among the caches."""
    for layer in caches:
        inner = find_unmergeable(layer.caches) if isinstance(layer, CacheList) else None
        if inner is not None:
            return inner
        if not isinstance(layer, (CacheList, *_MERGEABLE)):
            return type(layer).__name__
    return None
