"""Stores with a planted error each, as a kernel or an index may have one: all give tokens, and none complains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import mlx.core as mx
import msgspec

from mlxm.device.kv_store import Computed, KVStore, LayerShape
from mlxm.device.paged import PagedStore
from mlxm.device.rows import RowsStore
from mlxm.engine.plan import BLOCK_TOKENS, Chunk, Row

MakeStore = Callable[[Any, Sequence[LayerShape], int], KVStore]
STORES: dict[str, MakeStore] = {"paged in place": PagedStore, "gathered rows": RowsStore}


class FaultyStore:
    """A store that hands on something else than it was given."""

    kind = "faulty"

    def __init__(self, store: KVStore) -> None:
        self.store = store
        self.pools = store.pools

    def compute(self, rows: Sequence[Row], tokens: mx.array | None, chunks: Sequence[Chunk]) -> Computed:
        """What the store computes of what this one makes of the step."""
        computed = self.store.compute([self.row(row) for row in rows], tokens, [self.chunk(each) for each in chunks])
        return self.computed(computed)

    def row(self, row: Row) -> Row:
        """The row that is computed."""
        return row

    def chunk(self, chunk: Chunk) -> Chunk:
        """The chunk that is computed."""
        return chunk

    def computed(self, computed: Computed) -> Computed:
        """What is given back."""
        return computed


class LateRows(FaultyStore):
    """Rows stand one position too late."""

    def row(self, row: Row) -> Row:
        """At the edge of a block as well."""
        return msgspec.structs.replace(row, position=row.position + 1, table=[*row.table, 0])


class SwappedBlocks(FaultyStore):
    """A chunk is written to its blocks in the wrong order; rows look for it in the right one."""

    def chunk(self, chunk: Chunk) -> Chunk:
        """Where it ends within the second one."""
        if not BLOCK_TOKENS < chunk.start + len(chunk.tokens) < 2 * BLOCK_TOKENS:
            return chunk
        first, second, *others = chunk.table
        return msgspec.structs.replace(chunk, table=[second, first, *others])


class ForeignPrefix(FaultyStore):
    """Of what several sequences share, one of them finds a block of somebody else's."""

    def row(self, row: Row) -> Row:
        """In the middle of a long table."""
        if row.position < 8 * BLOCK_TOKENS or row.sequence % 4:
            return row
        return msgspec.structs.replace(row, table=[*row.table[:3], 1, *row.table[4:]])


class ForgetfulChunks(FaultyStore):
    """A chunk that goes on loses its last token."""

    def chunk(self, chunk: Chunk) -> Chunk:
        """The others lose none."""
        if chunk.start == 0:
            return chunk
        return msgspec.structs.replace(chunk, tokens=[*chunk.tokens[:-1], 0])


class MixedRows(FaultyStore):
    """Rows get each other's logits."""

    def computed(self, computed: Computed) -> Computed:
        """In reverse order."""
        if computed.logits is None:
            return computed
        return msgspec.structs.replace(computed, logits=computed.logits[::-1])


class NotFinite(FaultyStore):
    """Logits that are no numbers."""

    def computed(self, computed: Computed) -> Computed:
        """One of them."""
        if computed.logits is None:
            return computed
        return msgspec.structs.replace(computed, logits=computed.logits.at[0, 0].add(mx.nan))


FAULTS: tuple[type[FaultyStore], ...] = (
    LateRows,
    SwappedBlocks,
    ForeignPrefix,
    ForgetfulChunks,
    MixedRows,
    NotFinite,
)


def planted(fault: type[FaultyStore], make: MakeStore) -> MakeStore:
    """Builds a store with the fault."""
    return lambda model, shapes, num_blocks: fault(make(model, shapes, num_blocks))


def with_windows(make: MakeStore, change: int | None) -> MakeStore:
    """Builds a store whose windows are too wide or too narrow by so many tokens, or which has none (None).

    A layer's own window and the one that the model asks for are both changed: one of them would make up for the other.
    """

    def changed(window: int | None) -> int | None:
        return None if window is None or change is None else window + change

    def build(model: Any, shapes: Sequence[LayerShape], num_blocks: int) -> KVStore:
        others = [msgspec.structs.replace(shape, window=changed(shape.window)) for shape in shapes]
        store: Any = make(model, others, num_blocks)
        for layer in store._layers:
            layer.make_mask = partial(_make_mask, layer.make_mask, changed)
        return store

    return build


def _make_mask(make: Callable[..., Any], changed: Callable[..., Any], length: int, **options: Any) -> Any:
    return make(length, **options | {"window_size": changed(options.get("window_size"))})
