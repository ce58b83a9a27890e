"""How long the two parts of a step took, which share one forward; the engine cuts prompts by it."""

from __future__ import annotations

from collections.abc import Callable

_WEIGHT = 0.25
"""How much the latest step counts in the average time of rows."""


class Stopwatch:
    """Divides a step's time between its rows and its chunks, which share one forward.

    Rows are said to take what they take alone, or until that was seen, what is left when prompt tokens take what they
    take alone: what a step costs however few its tokens are is never the chunks' fault, or they would only shrink.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self._free_s = 0.0
        """When the device had done the step before."""
        self._row_s = 0.0
        self._token_s = 0.0

    def divide(self, began_s: float, num_rows: int, num_chunk_tokens: int) -> tuple[float, float]:
        """Seconds for the chunks and for the rows of a step that has just ended."""
        now_s = self.now()
        took_s = now_s - max(began_s, self._free_s)
        self._free_s = now_s
        if not num_chunk_tokens:
            self._row_s = took_s if self._row_s == 0 else self._row_s + _WEIGHT * (took_s - self._row_s)
            return 0.0, took_s
        if not num_rows:
            token_s = took_s / num_chunk_tokens
            self._token_s = min(self._token_s, token_s) if self._token_s else token_s  # small chunks are dearer
            return took_s, 0.0
        rows_s = min(self._row_s, took_s / 2) if self._row_s else self._guess(took_s, num_rows, num_chunk_tokens)
        return took_s - rows_s, rows_s

    def _guess(self, took_s: float, num_rows: int, num_chunk_tokens: int) -> float:
        by_number = took_s * num_rows / (num_rows + num_chunk_tokens)
        return max(by_number, took_s - num_chunk_tokens * self._token_s) if self._token_s else by_number
