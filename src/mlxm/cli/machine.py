"""What commands need to know of this machine and this moment to say whether a model fits and when it was used."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from mlxm.pool.limit import MemoryLimit

GB = 1000**3


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
    """What models may take of a machine's memory as long as nobody sets anything else."""
    return MemoryLimit().of(total_bytes)
