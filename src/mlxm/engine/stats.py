"""How the engine is doing, in numbers that a status page can show."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import msgspec

from mlxm.frames import Stats

WINDOW_S = 5.0
"""Rates and step times are those of the last seconds."""
_SHORTEST_S = 1e-3


class StepTimes(NamedTuple):
    """What one step did and took."""

    at_s: float
    num_rows: int
    chunks_s: float
    rows_s: float


class Meter:
    """Remembers the steps of the last seconds."""

    def __init__(self, began_s: float) -> None:
        self._began_s = began_s
        self._steps: deque[StepTimes] = deque()

    def add(self, step: StepTimes) -> None:
        """Count a step."""
        self._steps.append(step)
        self._drop_old(step.at_s)

    def fill(self, stats: Stats, now_s: float) -> Stats:
        """The stats, with rates and times."""
        self._drop_old(now_s)
        if not self._steps:
            return stats
        num_steps = len(self._steps)
        num_rows = sum(step.num_rows for step in self._steps)
        chunks_s = sum(step.chunks_s for step in self._steps) / num_steps
        rows_s = sum(step.rows_s for step in self._steps) / num_steps
        return msgspec.structs.replace(
            stats,
            tokens_per_s=num_rows / max(min(WINDOW_S, now_s - self._began_s), _SHORTEST_S),
            step_s=chunks_s + rows_s,
            step_chunks_s=chunks_s,
            step_rows_s=rows_s,
            batch_width=num_rows / max(1, sum(step.num_rows > 0 for step in self._steps)),
        )

    def _drop_old(self, now_s: float) -> None:
        while self._steps and self._steps[0].at_s < now_s - WINDOW_S:
            self._steps.popleft()
