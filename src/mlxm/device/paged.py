"""Attention in place: keys and values stay in their blocks, and each row reads its own of them through ids.

A model gets its tokens as rows of length one, those of prompts as well, each with a position of its own. So rows and
chunks of any number of sequences share a forward, and the weights are read once for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import msgspec
import numpy as np

from mlxm.device.attention import (
    Exponential,
    Handle,
    RowPairs,
    SharedRun,
    Span,
    Tile,
    attend_rows,
    attend_tiles,
    exponential,
    install_hook,
)
from mlxm.device.kv_store import Computed, LayerPool, LayerShape, Pools, on_cpu, pool_shapes, tame
from mlxm.device.layout import Ints, Places, Run, causal, find_runs, pair_up, tile
from mlxm.device.narrow import Narrowed
from mlxm.engine.plan import BLOCK_TOKENS, Chunk, Row
from mlxm.errors import InternalError

KIND = "paged in place"


class Window(msgspec.Struct, frozen=True):
    """What a model is handed for a mask: how many of the latest tokens to look at."""

    size: int


class PagedStore:
    """The store in which attention reads blocks where they lie, by `mx.gather_mm`."""

    kind = KIND

    def __init__(self, model: Any, shapes: Sequence[LayerShape], num_blocks: int, *, joins: bool = True) -> None:
        install_hook()
        self._model = model
        self._narrowed = Narrowed(model) if joins else None
        self.pools = Pools(pool_shapes(shapes), num_blocks)
        self._scope = _Scope()
        self._layers = [PagedLayer(pool, self._scope) for pool in self.pools.layers]

    def compute(self, rows: Sequence[Row], tokens: mx.array | None, chunks: Sequence[Chunk]) -> Computed:
        """One forward for all, or where the model's head cannot be narrowed, one for chunks and one for rows."""
        if tokens is None or not chunks or self._narrowed is not None:
            return self._forward(rows, tokens, chunks)
        finite_chunks = self._forward((), None, chunks).finite_chunks
        mx.async_eval(self.pools.arrays())  # type: ignore[no-untyped-call]  # as mlx has it
        return msgspec.structs.replace(self._forward(rows, tokens, ()), finite_chunks=finite_chunks)

    def _forward(self, rows: Sequence[Row], tokens: mx.array | None, chunks: Sequence[Chunk]) -> Computed:
        batch = self._scope.batch = Batch(rows, chunks)
        inputs = _inputs(tokens, chunks)
        if tokens is None or self._narrowed is None or not chunks:
            logits = self._model(inputs, cache=self._layers)
        else:
            logits = self._narrowed(len(rows), inputs, self._layers)
        finite = self._layers[-1].finite_chunks(batch) if chunks else None
        for layer in self._layers:
            layer.drop_fresh()
        return Computed(logits=logits[:, -1] if rows else None, finite_chunks=finite)


def _inputs(tokens: mx.array | None, chunks: Sequence[Chunk]) -> mx.array:
    prompt = [token for chunk in chunks for token in chunk.tokens]
    if tokens is None:
        return mx.array(prompt, dtype=mx.uint32)[:, None]
    return (mx.concatenate([tokens, mx.array(prompt, dtype=mx.uint32)]) if prompt else tokens)[:, None]


class _Scope:
    """The batch that is being computed; all layers look here."""

    def __init__(self) -> None:
        self.batch = Batch((), ())


class PagedLayer(Handle):
    """One layer's cache object for the model, and the handle that it returns in the place of keys and values."""

    def __init__(self, pool: LayerPool, scope: _Scope) -> None:
        self._pool = pool
        self._scope = scope
        self._fresh: tuple[mx.array, mx.array] | None = None

    @property
    def offset(self) -> mx.array:
        """Each token's position."""
        return self._scope.batch.offsets

    def make_mask(self, _: int, *, return_array: bool = False, window_size: int | None = None) -> Window | None:
        """No array: which tokens are looked at is known here."""
        if return_array:
            raise InternalError("the model works with its mask, which is no array here")
        return None if window_size is None else Window(window_size)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[PagedLayer, PagedLayer]:
        """Write keys and values [tokens, heads, 1, dim]."""
        keys, values = keys[:, :, 0], values[:, :, 0]
        self._pool.write(self._scope.batch.slots(self._pool.shape.heads), keys, values)
        self._fresh = (keys, values)
        return self, self

    def keys_and_values(self) -> tuple[PagedLayer, PagedLayer]:
        """The same for a layer that has no keys of its own and looks at this one's."""
        return self, self

    def attend(self, queries: mx.array, scale: float, mask: Any, sinks: mx.array | None) -> mx.array:
        """The rows' attention and the chunks'."""
        if mask is not None and type(mask) is not Window:
            raise InternalError("the model has made a mask of its own")
        sizes = [size for size in (self._pool.shape.window, None if mask is None else mask.size) if size is not None]
        window = min(sizes, default=None)
        batch, exp = self._scope.batch, self._scope.batch.exp
        dtype = queries.dtype
        flat = tame(queries[:, :, 0])
        parts = []
        if batch.num_rows:
            pairs = batch.pairs(self._pool.shape.heads, window)
            rows = flat[: batch.num_rows].astype(self._pool.keys.dtype)
            parts.append(attend_rows(rows, self._pool, pairs, scale=scale, sinks=sinks, exp=exp).astype(dtype))
        parts += [
            self._attend_chunk(flat, chunk, window, scale, sinks).astype(dtype) for chunk in range(batch.num_chunks)
        ]
        out = parts[0] if len(parts) == 1 else mx.concatenate(parts)
        return out[:, :, None]

    def _attend_chunk(
        self, flat: mx.array, chunk: int, window: int | None, scale: float, sinks: mx.array | None
    ) -> mx.array:
        """[queries, heads, dim] of one chunk."""
        batch = self._scope.batch
        begin, end = batch.chunk_bounds[chunk]
        queries = flat[begin:end].swapaxes(0, 1)
        keys, values = self._chunk_keys(chunk, window)
        if on_cpu():
            tiles = batch.tiles(chunk, window, queries.shape[0], queries.shape[0] // keys.shape[0])
            out = attend_tiles(queries, keys, values, tiles, scale=scale, sinks=sinks, exp=batch.exp)
        else:
            mask = batch.chunk_mask(chunk, window)
            out = mx.fast.scaled_dot_product_attention(
                queries[None], keys[None], values[None], scale=scale, mask=mask, sinks=sinks
            )[0]
        return out.swapaxes(0, 1)

    def _chunk_keys(self, chunk: int, window: int | None) -> tuple[mx.array, mx.array]:
        """Keys and values [heads, tokens, dim] from the first block looked at to the chunk's end."""
        batch, pool = self._scope.batch, self._pool
        begin, end = batch.chunk_bounds[chunk]
        if self._fresh is not None and batch.places.chunk_starts[chunk] == 0:
            keys, values = self._fresh
            return keys[begin:end].swapaxes(0, 1), values[begin:end].swapaxes(0, 1)
        heads = pool.shape.heads
        blocks, num_tokens = batch.chunk_blocks(chunk, heads, window)
        keys = mx.take(pool.key_blocks, blocks, axis=0).reshape(heads, -1, pool.shape.key_dim)
        values = mx.take(pool.value_blocks, blocks, axis=0).reshape(heads, -1, pool.shape.value_dim)
        return keys[:, :num_tokens], values[:, :num_tokens]

    def finite_chunks(self, batch: Batch) -> mx.array:
        """Whether what this layer keeps of each chunk is finite; in the last layer, whether all is that leads to it."""
        if self._fresh is None:
            raise InternalError("the model does not use its last cache")
        sums = [numbers.astype(mx.float32).sum((1, 2)) for numbers in self._fresh]
        finite = mx.isfinite(sums[0] + sums[1])
        return mx.stack([finite[begin:end].all() for begin, end in batch.chunk_bounds])

    def drop_fresh(self) -> None:
        """Keep no part of the last forward alive."""
        self._fresh = None


class Batch:
    """What one forward needs to know of its tokens, as arrays that all layers of a kind share."""

    def __init__(self, rows: Sequence[Row], chunks: Sequence[Chunk]) -> None:
        self.exp: Exponential = exponential()
        self.places = Places(rows, chunks)
        self.num_rows = len(rows)
        self.num_chunks = len(chunks)
        ends = self.num_rows + np.cumsum(self.places.chunk_lengths, dtype=np.int64)
        self.chunk_bounds = [
            (int(end) - length, int(end)) for end, length in zip(ends, self.places.chunk_lengths, strict=True)
        ]
        self.offsets = mx.array(self.places.positions.astype(np.int32))
        self._slots: dict[int, mx.array] = {}
        self._pairs: dict[tuple[int, int | None], RowPairs] = {}
        self._runs: list[Run] | None = None
        self._tiles: dict[tuple[int, int | None, int, int], list[Tile]] = {}
        self._chunk_blocks: dict[tuple[int, int, int | None], mx.array] = {}
        self._masks: dict[tuple[int, int], mx.array] = {}

    def slots(self, heads: int) -> mx.array:
        """Where the tokens are written."""
        if heads not in self._slots:
            self._slots[heads] = mx.array(self.places.slots(heads))
        return self._slots[heads]

    def pairs(self, heads: int, window: int | None) -> RowPairs:
        """Which row looks at which block."""
        key = (heads, window)
        if key not in self._pairs:
            self._pairs[key] = self._make_pairs(heads, window)
        return self._pairs[key]

    def _make_pairs(self, heads: int, window: int | None) -> RowPairs:
        tables, positions = self.places.row_tables, self.places.row_positions
        runs = self._find_runs() if window is None else []
        pairs = pair_up(tables, positions, window, runs)
        num_pairs = len(pairs.rows)
        members = np.zeros((self.num_rows, num_pairs), dtype=np.float32)
        members[pairs.rows, np.arange(num_pairs)] = 1
        return RowPairs(
            rows=mx.array(pairs.rows.astype(np.uint32)),
            members=mx.array(members),
            bias=mx.array(pairs.bias())[:, None, None],
            query_ids=_per_head(pairs.rows, heads),
            block_ids=_per_head(pairs.blocks, heads),
            pair_ids=_per_head(np.arange(num_pairs), heads),
            shared=tuple(self._shared(run, heads) for run in runs),
        )

    def _find_runs(self) -> list[Run]:
        if self._runs is None:
            self._runs = find_runs(self.places.row_tables, self.places.row_positions)
        return self._runs

    def _shared(self, run: Run, heads: int) -> SharedRun:
        has_all = len(run.rows) == self.num_rows
        rows = None if has_all else mx.array(run.rows.astype(np.uint32))
        return SharedRun(rows, _per_head(run.blocks, heads).T)

    def tiles(self, chunk: int, window: int | None, num_heads: int, repeats: int) -> list[Tile]:
        """A chunk's queries in pieces."""
        key = (chunk, window, num_heads, repeats)
        if key not in self._tiles:
            start, length = self.places.chunk_starts[chunk], self.places.chunk_lengths[chunk]
            first_key = self._first_block(chunk, window) * BLOCK_TOKENS
            tilings = tile(start=start, length=length, first_key=first_key, window=window, num_heads=num_heads)
            self._tiles[key] = [
                Tile(tiling.start, tiling.stop, tuple(_span(*span, repeats) for span in tiling.spans))
                for tiling in tilings
            ]
        return self._tiles[key]

    def chunk_blocks(self, chunk: int, heads: int, window: int | None) -> tuple[mx.array, int]:
        """Ids [heads, blocks] of what a chunk looks at, and how many tokens that is."""
        first = self._first_block(chunk, window)
        key = (chunk, heads, window)
        if key not in self._chunk_blocks:
            self._chunk_blocks[key] = _per_head(self.places.chunk_tables[chunk][first:], heads).T
        end = self.places.chunk_starts[chunk] + self.places.chunk_lengths[chunk]
        return self._chunk_blocks[key], end - first * BLOCK_TOKENS

    def chunk_mask(self, chunk: int, window: int | None) -> mx.array | str:
        """A mask in mlx's own terms."""
        if window is None:
            return "causal"
        if (chunk, window) not in self._masks:
            start, length = self.places.chunk_starts[chunk], self.places.chunk_lengths[chunk]
            first_key = self._first_block(chunk, window) * BLOCK_TOKENS
            keys = np.arange(first_key, start + length)
            self._masks[chunk, window] = mx.array(causal(np.arange(start, start + length), keys, window))
        return self._masks[chunk, window]

    def _first_block(self, chunk: int, window: int | None) -> int:
        start = self.places.chunk_starts[chunk]
        return 0 if window is None else max(0, start - window + 1) // BLOCK_TOKENS


def _per_head(ids: Ints, heads: int) -> mx.array:
    """[ids, heads]: an id for each head of each."""
    return mx.array((ids[:, None] * heads + np.arange(heads)[None]).astype(np.uint32))


def _span(start: int, stop: int, bias: Any, repeats: int) -> Span:
    return Span(start, stop, None if bias is None else mx.array(np.tile(bias.T, (1, repeats))))
