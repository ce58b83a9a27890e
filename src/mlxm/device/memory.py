"""What mlx holds in memory, for those who watch, and what of it can be given back."""

from __future__ import annotations

import mlx.core as mx
import msgspec

from mlxm.frames import Stats


def with_memory(stats: Stats) -> Stats:
    """The stats, with the bytes that mlx uses now, has used at most, and keeps for later."""
    return msgspec.structs.replace(
        stats,
        active_bytes=mx.get_active_memory(),
        peak_bytes=mx.get_peak_memory(),
        cache_bytes=mx.get_cache_memory(),
    )


def shrink() -> None:
    """Give back what mlx keeps of freed memory; blocks of the KV pool are one array, and go with the model."""
    mx.clear_cache()


def limit_cache(num_bytes: int) -> None:
    """Keep no more of freed memory than that, and no more than was allowed before."""
    mx.set_cache_limit(min(num_bytes, mx.set_cache_limit(0)))
