"""What commands need to know of this machine and this moment to say whether a model fits and when it was used."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

GB = 1000**3
_MIN_RESERVE_BYTES = 4 * GB
_MAX_RESERVE_BYTES = 8 * GB
_RESERVE_PARTS = 5


@dataclass(frozen=True, slots=True)
class Machine:
    """The time in unix seconds, and how much memory models may take."""

    now: float
    budget_bytes: int


def read_machine() -> Machine:
    """What holds here and now."""
    total_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Machine(now=time.time(), budget_bytes=budget_of(total_bytes))


def budget_of(total_bytes: int) -> int:
    """What is left for models: a fifth stays with the system, at least 4 GB and at most 8; half of a small machine."""
    reserve = min(max(total_bytes // _RESERVE_PARTS, _MIN_RESERVE_BYTES), _MAX_RESERVE_BYTES)
    return max(total_bytes - reserve, total_bytes // 2)
