"""Gathered rows: a model gets real arrays of keys and values and a mask, and needs no hook.

That is slower, since each step copies what it reads, but right for whatever a model does with its keys: attention of
its own, latent vectors, masks that it changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import mlx.core as mx
import numpy as np

from mlxm.device.kv_store import Computed, LayerPool, LayerShape, Pools
from mlxm.device.layout import Ints
from mlxm.engine.plan import BLOCK_TOKENS, SCRATCH_BLOCK, Chunk, Row
from mlxm.errors import InternalError

KIND = "gathered rows"
MaskAxes = Literal[4, 5]
"""Most models expect masks [sequences, 1, queries, keys]; some split their heads and need one axis more."""
_MAX_PADDING = 1.25
"""Chunks are padded to one length and computed together while that adds at most a quarter."""


class RowsStore:
    """The store in which a step gathers all that it reads."""

    kind = KIND

    def __init__(self, model: Any, shapes: Sequence[LayerShape], num_blocks: int, *, mask_axes: MaskAxes = 4) -> None:
        self._model = model
        self.pools = Pools(shapes, num_blocks)
        self._scope = _Scope(mask_axes)
        self._layers = [RowsLayer(pool, self._scope) for pool in self.pools.layers]

    def compute(self, rows: Sequence[Row], tokens: mx.array | None, chunks: Sequence[Chunk]) -> Computed:
        """Chunks of like lengths together, then the rows."""
        finite = []
        groups = _groups(chunks)
        for group in groups:
            finite.append(self._prefill([chunks[place] for place in group]))
            mx.async_eval(finite[-1], self.pools.arrays())  # type: ignore[no-untyped-call]  # as mlx has it
        logits = None if tokens is None else self._decode(rows, tokens)
        if not chunks:
            return Computed(logits=logits, finite_chunks=None)
        order = np.argsort([place for group in groups for place in group])
        return Computed(logits=logits, finite_chunks=mx.concatenate(finite)[mx.array(order.astype(np.uint32))])

    def _decode(self, rows: Sequence[Row], tokens: mx.array) -> mx.array:
        starts = np.array([row.position for row in rows], dtype=np.int64)
        self._scope.batch = PaddedBatch([row.table for row in rows], starts, np.ones_like(starts))
        logits: mx.array = self._model(tokens[:, None], cache=self._layers)
        self._drop()
        return logits[:, -1]

    def _prefill(self, chunks: Sequence[Chunk]) -> mx.array:
        """Whether each chunk's numbers are finite."""
        starts = np.array([chunk.start for chunk in chunks], dtype=np.int64)
        lengths = np.array([len(chunk.tokens) for chunk in chunks], dtype=np.int64)
        tokens = np.zeros((len(chunks), int(lengths.max())), dtype=np.uint32)
        for place, chunk in enumerate(chunks):
            tokens[place, : len(chunk.tokens)] = chunk.tokens
        self._scope.batch = PaddedBatch([chunk.table for chunk in chunks], starts, lengths)
        self._model(mx.array(tokens), cache=self._layers)
        finite = self._layers[-1].are_finite(lengths)
        self._drop()
        return finite

    def _drop(self) -> None:
        for layer in self._layers:
            layer.drop()


def _groups(chunks: Sequence[Chunk]) -> list[list[int]]:
    """Places of chunks that are computed together, the shortest first."""
    groups: list[list[int]] = []
    total = 0
    for place in sorted(range(len(chunks)), key=lambda place: len(chunks[place].tokens)):
        length = len(chunks[place].tokens)
        total += length
        if groups and (len(groups[-1]) + 1) * length <= _MAX_PADDING * total:
            groups[-1].append(place)
        else:
            groups.append([place])
            total = length
    return groups


class PaddedBatch:
    """Sequences of tokens [sequences, tokens] that stand in their tables from `starts` on; what is too long is padding.

    Padding is written to the scratch block.
    """

    def __init__(self, tables: Sequence[Sequence[int]], starts: Ints, lengths: Ints) -> None:
        self.starts = starts
        self._width = int(lengths.max())
        self._ends = starts + lengths
        longest = int((self._ends.max() - 1) // BLOCK_TOKENS) + 1
        self._tables = np.full((len(tables), longest), SCRATCH_BLOCK, dtype=np.int64)
        for place, (table, end) in enumerate(zip(tables, self._ends, strict=True)):
            used = table[: (int(end) - 1) // BLOCK_TOKENS + 1]
            self._tables[place, : len(used)] = used
        self.offsets = mx.array(starts.astype(np.int32))
        self._slots: dict[int, mx.array] = {}
        self._blocks: dict[tuple[int, int | None], mx.array] = {}
        self._masks: dict[tuple[int | None, int | None], mx.array] = {}

    def slots(self, heads: int) -> mx.array:
        """[sequences * tokens, heads]: where they are written."""
        if heads not in self._slots:
            positions = self.starts[:, None] + np.arange(self._width)[None]
            is_padding = positions >= self._ends[:, None]
            indices = np.minimum(positions // BLOCK_TOKENS, self._tables.shape[1] - 1)
            blocks = np.where(is_padding, SCRATCH_BLOCK, np.take_along_axis(self._tables, indices, axis=1))
            ids = blocks.reshape(-1, 1) * heads + np.arange(heads)[None]
            slots = ids * BLOCK_TOKENS + (positions % BLOCK_TOKENS).reshape(-1, 1)
            self._slots[heads] = mx.array(slots.astype(np.uint32))
        return self._slots[heads]

    def blocks(self, heads: int, kept: int | None) -> mx.array:
        """[sequences, heads, blocks]: ids of what is gathered, all or the blocks of the `kept` latest tokens."""
        key = (heads, kept)
        if key not in self._blocks:
            first, number = self._range(kept)
            indices = np.minimum(first[:, None] + np.arange(number)[None], self._tables.shape[1] - 1)
            blocks = np.take_along_axis(self._tables, indices, axis=1)
            ids = blocks[:, None, :] * heads + np.arange(heads)[None, :, None]
            self._blocks[key] = mx.array(ids.astype(np.uint32))
        return self._blocks[key]

    def mask(self, kept: int | None, window: int | None, axes: int) -> mx.array:
        """Which of the gathered tokens each query looks at: [sequences, 1, queries, keys], or with one axis more."""
        key = (kept, window)
        if key not in self._masks:
            first, number = self._range(kept)
            keys = (first[:, None] * BLOCK_TOKENS + np.arange(number * BLOCK_TOKENS)[None])[:, None, :]
            queries = (self.starts[:, None] + np.arange(self._width)[None])[:, :, None]
            seen = keys <= queries
            if window is not None:
                seen &= keys > queries - window
            seen = seen.reshape(len(seen), *[1] * (axes - 3), *seen.shape[1:])
            self._masks[key] = mx.array(seen)
        return self._masks[key]

    def _range(self, kept: int | None) -> tuple[Ints, int]:
        """Each sequence's first gathered block, and how many blocks are gathered of each."""
        if kept is None:
            return np.zeros_like(self.starts), self._tables.shape[1]
        first = np.maximum(self.starts - kept + 1, 0) // BLOCK_TOKENS
        last = (self.starts + self._width - 1) // BLOCK_TOKENS
        return first, int((last - first).max()) + 1


class _Scope:
    """The batch that is being computed; all layers look here."""

    def __init__(self, mask_axes: MaskAxes) -> None:
        self.mask_axes = mask_axes
        self.batch = PaddedBatch([[SCRATCH_BLOCK]], np.zeros(1, dtype=np.int64), np.ones(1, dtype=np.int64))


class RowsLayer:
    """One layer's cache object for the model."""

    def __init__(self, pool: LayerPool, scope: _Scope) -> None:
        self._pool = pool
        self._scope = scope
        self._fresh: tuple[mx.array, mx.array] | None = None
        self._gathered: tuple[mx.array, mx.array] | None = None

    @property
    def offset(self) -> mx.array:
        """The position of each sequence's first token."""
        return self._scope.batch.offsets

    def make_mask(self, _: int, *, return_array: bool = False, window_size: int | None = None) -> mx.array:
        """The mask of the layers that keep as much as this one; always an array."""
        del return_array
        kept = self._pool.shape.window
        window = kept if window_size is None else window_size
        if kept is not None and window is not None:
            window = min(kept, window)
        return self._scope.batch.mask(kept, window, self._scope.mask_axes)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write keys and values [sequences, heads, tokens, dim], and gather all that is looked at."""
        self._pool.write(self._scope.batch.slots(self._pool.shape.heads), _by_token(keys), _by_token(values))
        self._fresh = (keys, values)
        self._gathered = (self._gather(self._pool.key_blocks), self._gather(self._pool.value_blocks))
        return self._gathered

    def keys_and_values(self) -> tuple[mx.array, mx.array]:
        """The same again for a layer that has no keys of its own and looks at this one's."""
        if self._gathered is None:
            raise InternalError("the model looks at keys before they are written")
        return self._gathered

    def _gather(self, blocks: mx.array) -> mx.array:
        ids = self._scope.batch.blocks(self._pool.shape.heads, self._pool.shape.window)
        gathered = mx.take(blocks, ids, axis=0)
        return gathered.reshape(*ids.shape[:2], -1, blocks.shape[-1])

    def are_finite(self, lengths: Ints) -> mx.array:
        """Whether what this layer keeps is finite; in the last layer, whether all is that leads to it."""
        if self._fresh is None:
            raise InternalError("the model does not use its last cache")
        keys, values = (numbers.astype(mx.float32).sum((1, 3)) for numbers in self._fresh)
        is_padding = mx.array(np.arange(int(lengths.max()))[None] >= lengths[:, None])
        return mx.logical_or(mx.isfinite(keys + values), is_padding).all(-1)

    def drop(self) -> None:
        """Keep no part of the last forward alive."""
        self._fresh = self._gathered = None


def _by_token(numbers: mx.array) -> mx.array:
    """[sequences, heads, tokens, dim] as [sequences * tokens, heads, dim]."""
    _, heads, _, dim = numbers.shape
    return numbers.swapaxes(1, 2).reshape(-1, heads, dim)
