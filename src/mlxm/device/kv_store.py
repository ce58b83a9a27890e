"""Where keys and values are kept, and what a runner asks of such a place: the tokens that follow these.

A pool has one flat array of keys and one of values per layer. A block is 32 tokens of every head:

    slot = (block * heads + head) * 32 + token         arrays [blocks * heads * 32, head_dim]

so a block of one head lies in one piece, and a step writes all its tokens with one scatter. MLX does that in place as
long as nothing unevaluated reads the array: whatever reads a pool is evaluated before the next write to it is built.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import mlx.core as mx
import msgspec
import numpy as np
from mlx_lm.models.cache import KVCache, RotatingKVCache, make_prompt_cache

from mlxm.engine.plan import BLOCK_TOKENS, Chunk, Row
from mlxm.errors import InternalError

_LARGEST = 1e15
"""Beyond it a number is as good as not finite: products of two such are still representable in single precision."""


class LayerShape(msgspec.Struct, frozen=True, kw_only=True):
    """What one layer keeps for a token, and how many of the latest tokens it looks at (None: all)."""

    heads: int
    key_dim: int
    value_dim: int
    window: int | None
    dtype: Any

    @property
    def token_bytes(self) -> int:
        """Bytes that one token takes."""
        size: int = self.dtype.size
        return self.heads * (self.key_dim + self.value_dim) * size


class Computed(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a step, not evaluated yet: logits [rows, vocabulary], and whether each chunk is finite."""

    logits: mx.array | None
    finite_chunks: mx.array | None


class KVStore(Protocol):
    """Computes rows and chunks of a model over its own keeping of keys and values.

    It may evaluate inside of a step; what is left to evaluate afterwards is its pools and what it returned. A row gets
    the same numbers whatever else is in the step.
    """

    @property
    def kind(self) -> str:
        """Its name."""
        ...

    @property
    def pools(self) -> Pools:
        """What must be evaluated before the next step is built; blocks are wiped and copied here."""
        ...

    def compute(self, rows: Sequence[Row], tokens: mx.array | None, chunks: Sequence[Chunk]) -> Computed:
        """Write what the rows and the chunks keep, and give the rows' logits; `tokens` are those of the rows."""
        ...


class LayerPool:
    """Keys and values of one layer."""

    def __init__(self, shape: LayerShape, num_blocks: int) -> None:
        self.shape = shape
        num_slots = num_blocks * shape.heads * BLOCK_TOKENS
        self.keys = mx.zeros((num_slots, shape.key_dim), shape.dtype)
        self.values = mx.zeros((num_slots, shape.value_dim), shape.dtype)

    @property
    def key_blocks(self) -> mx.array:
        """Keys as [blocks * heads, 32, key_dim]."""
        return self.keys.reshape(-1, BLOCK_TOKENS, self.shape.key_dim)

    @property
    def value_blocks(self) -> mx.array:
        """Values as [blocks * heads, 32, value_dim]."""
        return self.values.reshape(-1, BLOCK_TOKENS, self.shape.value_dim)

    def write(self, slots: mx.array, keys: mx.array, values: mx.array) -> None:
        """Put keys and values [tokens, heads, dim] into slots [tokens, heads]; what is not finite becomes zero.

        So a sequence whose numbers break down leaves nothing behind that could break another one's.
        """
        self.keys[slots] = tame(keys.astype(self.keys.dtype))
        self.values[slots] = tame(values.astype(self.values.dtype))

    def wipe(self, slots: mx.array) -> None:
        """Zero slots."""
        self.keys[slots] = mx.zeros((), self.keys.dtype)
        self.values[slots] = mx.zeros((), self.values.dtype)


class Pools:
    """The pools of all layers, with the same blocks."""

    def __init__(self, shapes: Sequence[LayerShape], num_blocks: int) -> None:
        self.layers = [LayerPool(shape, num_blocks) for shape in shapes]
        self.num_blocks = num_blocks
        self.block_bytes = block_bytes(shapes)
        mx.eval(self.arrays())

    def arrays(self) -> list[mx.array]:
        """Every layer's keys and values."""
        return [array for layer in self.layers for array in (layer.keys, layer.values)]

    def wipe(self, blocks: Sequence[int]) -> None:
        """Zero blocks."""
        for layer in self.layers:
            layer.wipe(_slots(blocks, layer.shape.heads))

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy blocks, from the first to the second of each pair."""
        sources, targets = [source for source, _ in pairs], [target for _, target in pairs]
        read = []
        for layer in self.layers:
            slots = _slots(sources, layer.shape.heads)
            read.append((layer.keys[slots], layer.values[slots]))
        mx.eval(read)  # or the writes would copy whole pools
        for layer, (keys, values) in zip(self.layers, read, strict=True):
            slots = _slots(targets, layer.shape.heads)
            layer.keys[slots] = keys
            layer.values[slots] = values


def _slots(blocks: Sequence[int], heads: int) -> mx.array:
    """All slots of some blocks."""
    per_block = heads * BLOCK_TOKENS
    slots = np.array(blocks, dtype=np.int64)[:, None] * per_block + np.arange(per_block)[None]
    return mx.array(slots.reshape(-1).astype(np.uint32))


@partial(mx.compile, shapeless=True)
def tame(numbers: mx.array) -> mx.array:
    """The numbers, with zero for those that are not finite."""
    return mx.where(mx.abs(numbers) < min(_LARGEST, float(mx.finfo(numbers.dtype).max)), numbers, 0.0)


def on_cpu() -> bool:
    """Whether mlx computes on the CPU."""
    return bool(mx.default_device().type == mx.cpu)


def read_shapes(model: Any) -> list[LayerShape]:
    """What each layer keeps, seen in a forward of one token; raises InternalError when it is no plain keys and values.

    Sizes in a model's configuration say something else too often.
    """
    caches = make_prompt_cache(model)
    mx.eval(model(mx.array([[0]]), cache=caches))
    return [_shape(cache) for cache in caches]


def _shape(cache: Any) -> LayerShape:
    is_rotating = type(cache) is RotatingKVCache
    if not (is_rotating and cache.keep == 0) and type(cache) is not KVCache:
        raise InternalError(f"its layers keep a {type(cache).__name__}, which does not lie in blocks")
    if cache.keys is None or cache.keys.ndim != 4 or cache.keys.shape[:2] != cache.values.shape[:2]:  # noqa: PLR2004
        raise InternalError("a layer keeps no keys and values of the usual form")
    return LayerShape(
        heads=cache.keys.shape[1],
        key_dim=cache.keys.shape[3],
        value_dim=cache.values.shape[3],
        window=cache.max_size if is_rotating else None,
        dtype=cache.keys.dtype,
    )


def pool_shapes(shapes: Sequence[LayerShape]) -> list[LayerShape]:
    """The same layers as they are kept here: on the CPU in single precision, all that its fast products know."""
    if not on_cpu():
        return list(shapes)
    return [msgspec.structs.replace(shape, dtype=mx.float32) for shape in shapes]


def block_bytes(shapes: Sequence[LayerShape]) -> int:
    """Bytes of one block in all layers."""
    return BLOCK_TOKENS * sum(shape.token_bytes for shape in shapes)
