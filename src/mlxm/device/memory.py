"""What mlx holds in memory, for those who watch."""

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
