"""How much memory models may take together: what people allow, cut to what the system can spare."""

from __future__ import annotations

from typing import Final

import msgspec

GB: Final = 1000**3
_MIN_RESERVE_BYTES: Final = 4 * GB
_MAX_RESERVE_BYTES: Final = 8 * GB
_RESERVE_PARTS: Final = 5
_PERCENT: Final = 100


class MemoryLimit(msgspec.Struct, frozen=True, kw_only=True):
    """What people allow: a percentage of the machine's memory or a number of bytes, and what stays with the system.

    `reserve_bytes` None means a fifth of the machine, at least 4 GB and at most 8.
    """

    percent: float | None = 80.0
    num_bytes: int | None = None
    reserve_bytes: int | None = None

    def of(self, total_bytes: int) -> int:
        """The bytes that models may take on a machine of that size; what leaves the system too little is cut."""
        most = total_bytes - self._reserve(total_bytes)
        if self.num_bytes is not None:
            return min(self.num_bytes, most)
        percent = _PERCENT if self.percent is None else self.percent
        return min(round(total_bytes * percent / _PERCENT), most)

    def as_percent(self, total_bytes: int) -> float:
        """The same limit as a percentage of the machine."""
        return _PERCENT * self.of(total_bytes) / total_bytes

    def _reserve(self, total_bytes: int) -> int:
        """Half of a machine too small for the usual reserve is left to models."""
        usual = min(max(total_bytes // _RESERVE_PARTS, _MIN_RESERVE_BYTES), _MAX_RESERVE_BYTES)
        wanted = usual if self.reserve_bytes is None else self.reserve_bytes
        return min(wanted, total_bytes - total_bytes // 2)
