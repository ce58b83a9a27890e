"""How much memory one model will take.

A model's share is its weights, what computing takes, and a KV pool whose size is chosen here: as large as it can
make use of while there is room, at least as large as one conversation needs.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import msgspec

from mlxm.catalog.cache_shape import CacheShape
from mlxm.catalog.characteristics import Characteristics, describe
from mlxm.catalog.memory import estimate, kv_bytes
from mlxm.errors import ModelBroken
from mlxm.frames import MAX_ROWS
from mlxm.pool.limit import GB

_USUAL_TOKENS: Final = 32_768
"""Idle models go so that a conversation of this length finds room, and not for more."""
_LEAST_TOKENS: Final = 4096
"""With less room than for this a model is of no use."""
_ROW_TOKENS: Final = 4096
_CACHE_STEPS: Final = 3
"""Freed memory is kept for as much as so many large steps take; with less, each of them asks the system again."""
_LEAST_CACHE_BYTES: Final = 32 * 1000**2
_MOST_CACHE_BYTES: Final = 2 * GB
_STATE_COPIES: Final = 4
"""Batches of states and of mlx-lm's caches are copied when a sequence joins or leaves."""
_UNKNOWN_CONTEXT: Final = 4096
_UNKNOWN_TOKEN_BYTES: Final = 1 << 17
_BLOCK_TOKENS: Final = 32
_GPU_VALUE_BITS: Final = 16
_CPU_VALUE_BITS: Final = 32


class Need(msgspec.Struct, frozen=True, kw_only=True):
    """What a model takes: `fixed_bytes` in any case, and for keys and values as much as it gets between two bounds.

    Other models that nobody uses go for `usual_kv_bytes`.
    """

    fixed_bytes: int
    cache_bytes: int | None = None
    """How much of it is for freed memory that is kept; None leaves that to the worker."""
    least_kv_bytes: int = 0
    usual_kv_bytes: int = 0
    most_kv_bytes: int = 0

    @property
    def least_bytes(self) -> int:
        """With less it cannot be loaded."""
        return self.fixed_bytes + self.least_kv_bytes

    @property
    def usual_bytes(self) -> int:
        """What is worth making room for."""
        return self.fixed_bytes + self.usual_kv_bytes

    def share_of(self, free_bytes: int, budget_bytes: int) -> int:
        """What it gets where so much is free, at least what it needs: half of what its weights leave is for others."""
        fair_bytes = self.fixed_bytes + max(self.usual_kv_bytes, (budget_bytes - self.fixed_bytes) // 2)
        most = min(self.fixed_bytes + self.most_kv_bytes, fair_bytes, free_bytes)
        return max(most, self.least_bytes)


def value_bits_here() -> int:
    """How wide stores keep keys and values here: on a CPU in single precision, elsewhere as the model has them."""
    try:
        version("mlx-cpu")
    except PackageNotFoundError:
        return _GPU_VALUE_BITS
    return _CPU_VALUE_BITS


class Estimator(msgspec.Struct, frozen=True, kw_only=True):
    """Reads a model's files; `value_bits` is how wide the machine's stores keep keys and values."""

    max_rows: int = MAX_ROWS
    value_bits: int = _GPU_VALUE_BITS

    def __call__(self, folder: Path, context: int | None) -> Need:
        """What the model needs. Files that cannot be understood need nothing: the worker will say what is wrong."""
        try:
            known = describe(folder)
        except ModelBroken:
            return Need(fixed_bytes=0)
        found = estimate(known, known.size_bytes, _USUAL_TOKENS)
        if found is None:
            return Need(fixed_bytes=0)
        cache = min(max(_CACHE_STEPS * found.overhead_bytes, _LEAST_CACHE_BYTES), _MOST_CACHE_BYTES)
        least, usual, most = (self._kv_bytes(known.cache, tokens) for tokens in self._tokens(known, context))
        return Need(
            fixed_bytes=found.weights_bytes + cache,
            cache_bytes=cache,
            least_kv_bytes=least,
            usual_kv_bytes=usual,
            most_kv_bytes=most,
        )

    def _tokens(self, known: Characteristics, context: int | None) -> tuple[int, int, int]:
        """How many tokens there is to be room for: at least, usually, and at most."""
        if context is not None:
            return context, context, context
        longest = _UNKNOWN_CONTEXT if known.context_length is None else known.context_length
        most = max(longest, self.max_rows * min(longest, _ROW_TOKENS))
        return min(longest, _LEAST_TOKENS), min(most, _USUAL_TOKENS), most

    def _kv_bytes(self, cache: CacheShape | None, tokens: int) -> int:
        """What so many tokens take, with a block that nobody uses and one that is never full."""
        num_slots = (-(-tokens // _BLOCK_TOKENS) + 2) * _BLOCK_TOKENS
        if cache is None:
            return num_slots * _UNKNOWN_TOKEN_BYTES
        in_blocks = msgspec.structs.replace(cache, window=None if cache.window is None else num_slots)
        if cache.state_values == 0:
            return kv_bytes(in_blocks, num_slots, kv_bits=self.value_bits)
        num_rows = max(1, min(self.max_rows, tokens // _ROW_TOKENS))
        each = msgspec.structs.replace(cache, full_layers=0, window_layers=0)
        kept = kv_bytes(in_blocks, num_slots, kv_bits=self.value_bits) + (num_rows - 1) * kv_bytes(each, 1)
        return _STATE_COPIES * kept
