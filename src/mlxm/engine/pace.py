"""How many prompt tokens a step may compute, from the time that such tokens were seen to take.

While streams run, a step that also computes one prompt lasts a fixed multiple of a quiet one: readers see their tokens
come slower, not stop, and the prompt gets a fixed share of the time.
"""

from __future__ import annotations

import math

import msgspec

from mlxm.engine.plan import Outcome

_WEIGHT = 0.25
"""How much the latest step counts in the averages."""


class PaceOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How the time of a step is divided."""

    max_chunk_tokens: int = 512
    """Prompt tokens of a step in which nobody waits for a next token."""
    min_chunk_tokens: int = 16
    """Prompt tokens of any step, however slow they are."""
    slowdown: float = 2.75
    """How many times a quiet step one may take that also computes a prompt.

    Three is what readers are promised; the rest is for steps that turn out slower than those before them.
    """


class Pace:
    """Measures steps and limits the next one."""

    def __init__(self, options: PaceOptions) -> None:
        self._options = options
        self.limit_tokens: int | None = None
        """Prompt tokens of a step while it is another worker's turn to compute long prompts."""
        self._rows_s = 0.0
        self._token_s: dict[bool, float] = {}
        """Seconds per prompt token by whether rows ran beside it: small chunks are dearer than large ones."""

    def measure(self, outcome: Outcome, *, num_chunk_tokens: int, num_rows: int) -> None:
        """Learn from a step."""
        if num_rows and outcome.rows_s > 0:
            self._rows_s = _average(self._rows_s, outcome.rows_s)
        if num_chunk_tokens and outcome.chunks_s > 0:
            token_s = outcome.chunks_s / num_chunk_tokens
            self._token_s[num_rows > 0] = _average(self._token_s.get(num_rows > 0, 0.0), token_s)

    def chunk_tokens(self, *, num_rows: int, num_prompts: int) -> int:
        """How many prompt tokens fit into a step beside rows.

        They grow with the root of the number of prompts: the more of them wait, the more is gained when they are
        soon computed together, and the longer may those wait who are reading already.
        """
        tokens = self._fitting(num_rows, num_prompts)
        return tokens if self.limit_tokens is None else min(tokens, self.limit_tokens)

    def _fitting(self, num_rows: int, num_prompts: int) -> int:
        options = self._options
        if num_rows == 0:
            return options.max_chunk_tokens
        token_s = self._token_s.get(True, self._token_s.get(False, 0.0))
        if self._rows_s == 0 or token_s == 0:
            return options.min_chunk_tokens
        share_s = self._rows_s * (options.slowdown - 1)
        wanted = share_s * math.sqrt(num_prompts) / token_s
        return round(min(max(wanted, options.min_chunk_tokens), options.max_chunk_tokens))


def _average(before: float, latest: float) -> float:
    return latest if before == 0 else before + _WEIGHT * (latest - before)
