"""Makes the runner on mlx-lm's caches for a model: how its rows are computed, and how many blocks stand for its memory.

Nothing lies in those blocks; sequences are counted in them, so that no more are let in than there is memory for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import mlx.core as mx
import msgspec
from mlx_lm.models.cache import CacheList, ChunkedKVCache, KVCache, RotatingKVCache, make_prompt_cache

from mlxm.device.batch_caches import BatchCacheRunner
from mlxm.device.batch_check import find_batching_fault
from mlxm.device.cache_batch import arrays_of
from mlxm.device.sampler import Sampler
from mlxm.engine.blocks import num_blocks_for
from mlxm.engine.plan import BLOCK_TOKENS, RunnerFacts
from mlxm.errors import OutOfMemory

BATCHED_KIND = "mlx-lm batch caches"
ALONE_KIND = "mlx-lm caches, one at a time"
_COPIES = 3
"""A batch may pad its members to as many tokens as all may have together, and is copied when one joins or leaves."""


class Footprint(msgspec.Struct, frozen=True, kw_only=True):
    """What a sequence's caches take: for each token, and whatever its length."""

    token_bytes: int = 0
    sequence_bytes: int = 0

    def __add__(self, other: Footprint) -> Footprint:
        return Footprint(
            token_bytes=self.token_bytes + other.token_bytes,
            sequence_bytes=self.sequence_bytes + other.sequence_bytes,
        )


def build_batch_cache_runner(
    model: Any,
    sampler: Sampler,
    *,
    vocab_size: int,
    memory_bytes: int,
    max_rows: int,
    context_length: int,
    why_no_blocks: str = "",
) -> BatchCacheRunner:
    """A runner that lets in as many tokens as fit into the memory given, and batches rows if that is right.

    Raises OutOfMemory when not even one short sequence fits.
    """
    footprint = measure_footprint(model)
    at_once_bytes = memory_bytes // _COPIES
    least_bytes = footprint.sequence_bytes + footprint.token_bytes * BLOCK_TOKENS
    if at_once_bytes < least_bytes:
        raise OutOfMemory(
            f"What a sequence keeps needs at least {_COPIES * least_bytes / 1e6:.1f} MB, "
            f"and {memory_bytes / 1e6:.1f} MB are left for it.",
            hint="Choose a smaller model, or stop other programs.",
        )
    fault = find_batching_fault(model, vocab_size)
    if footprint.sequence_bytes:
        max_rows = max(1, min(max_rows, at_once_bytes // 2 // footprint.sequence_bytes))
    block_bytes = footprint.token_bytes * BLOCK_TOKENS
    num_blocks = max_rows * num_blocks_for(context_length)
    if block_bytes:
        num_blocks = min(num_blocks, (at_once_bytes - max_rows * footprint.sequence_bytes) // block_bytes)
    facts = RunnerFacts(
        kind=ALONE_KIND if fault else BATCHED_KIND,
        why="; ".join(filter(None, (fault or "in a batch each row got what it gets alone", why_no_blocks))),
        num_blocks=1 + num_blocks,
        max_rows=max_rows,
        shares_prefixes=False,
        runs_ahead=False,
        block_bytes=block_bytes,
    )
    return BatchCacheRunner(model, sampler, facts, batches=fault is None)


def measure_footprint(model: Any) -> Footprint:
    """Compute one token, and look at what is kept."""
    caches = make_prompt_cache(model)
    model(mx.array([[0]]), cache=caches)
    mx.eval(arrays_of(caches))
    return _footprint(caches)


def _footprint(caches: Iterable[Any]) -> Footprint:
    return sum((_layer_footprint(layer) for layer in caches), start=Footprint())


def _layer_footprint(layer: Any) -> Footprint:
    """Caches of keys and values hold room for more tokens than they have; a window fills up and stays."""
    if isinstance(layer, CacheList):
        return _footprint(layer.caches)
    if isinstance(layer, KVCache):
        return Footprint(token_bytes=_slot_bytes(layer))
    if isinstance(layer, RotatingKVCache):
        return Footprint(sequence_bytes=_slot_bytes(layer) * layer.max_size)
    if isinstance(layer, ChunkedKVCache):
        return Footprint(sequence_bytes=_slot_bytes(layer) * layer.chunk_size)
    return Footprint(sequence_bytes=layer.nbytes)


def _slot_bytes(layer: Any) -> int:
    return int(sum(array.nbytes // array.shape[2] for array in (layer.keys, layer.values)))
