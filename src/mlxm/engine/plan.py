"""What the scheduler asks of the device for one step, and what the device answers: plain data, no MLX.

A prompt is computed in chunks up to its last token but one; the last one is a row, like every token after it. So a
chunk needs keys and values only, a row needs logits, and one step may hold both:

    tokens     p0 p1 p2 … p62 | p63 … p99 | p100 | t0 | t1
               chunk          | chunk     | row  | row| row       (one sequence, five steps)

Block 0 is scratch: padding is written there, and no sequence owns it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from mlxm.types import Sampling

BLOCK_TOKENS = 32
SCRATCH_BLOCK = 0


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One token of a sequence whose successor is wanted.

    `token` None stands for the token that the step launched before this one samples for the same sequence: it is
    still on the device. Where the runner takes runs, a step may hold rows of one sequence with consecutive positions.
    """

    sequence: int
    position: int
    token: int | None
    table: Sequence[int]
    sampling: Sampling = Sampling()
    seed: int = 0
    tokens: Sequence[int] = ()
    """All tokens of the sequence that are known, prompt and answer: its own list, which grows after the step."""
    num_prompt: int = 0
    """How many of them are the prompt's."""
    mask: bytes | None = None
    """A bit for each token id, the lowest first: whether it may be chosen."""
    banned_ids: tuple[int, ...] = ()
    """Tokens that may not be chosen in this step."""
    num_logprobs: int | None = None
    """How many of the likeliest tokens to name; None: no logprobs are wanted."""
    target: int | None = None
    """A token whose logprob is wanted instead of the chosen one's: that of the prompt which comes next."""


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """A run of prompt tokens from position `start` whose keys and values are wanted."""

    sequence: int
    start: int
    tokens: Sequence[int]
    table: Sequence[int]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One step. Blocks in `wipes` are zeroed first, then `copies` (source block, target block) are made.

    Wiped is what a failed step may have left: a weight of zero does not mask a number that is not finite. A sequence
    has a row or a chunk in a step, not both. After a failure a position may be asked for again.
    """

    rows: tuple[Row, ...] = ()
    chunks: tuple[Chunk, ...] = ()
    copies: tuple[tuple[int, int], ...] = ()
    wipes: tuple[int, ...] = ()


class RowLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """The logprob of a row's token (or of its target), and the likeliest ids with theirs, the likeliest first."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """A launched plan's result: a token per row (of a failed row it means nothing), and the seconds it took.

    `failed_rows` and `failed_chunks` are indices into the plan whose numbers were not finite.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[RowLogprobs | None, ...] = ()
    """One per row when any row wants them, else empty."""
    failed_rows: tuple[int, ...] = ()
    failed_chunks: tuple[int, ...] = ()
    chunks_s: float = 0.0
    rows_s: float = 0.0


class RunnerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a runner can do; `kind` names its KV store and `why` says what decided for it."""

    kind: str
    why: str
    num_blocks: int
    max_rows: int
    shares_prefixes: bool
    runs_ahead: bool
    """Whether the next step is launched before the last one's tokens are known (worth it on GPUs only)."""
    block_bytes: int
    takes_runs: bool = False
    """Whether a step may hold several rows of one sequence."""


class Runner(Protocol):
    """Computes plans, in the order in which they are launched."""

    @property
    def facts(self) -> RunnerFacts:
        """What it can do."""
        ...

    def launch(self, plan: Plan) -> None:
        """Start a step. When it raises, this step is lost, and those launched before it are not."""
        ...

    def collect(self) -> Outcome:
        """Wait for the oldest step that was launched and not collected. When it raises, all launched steps are lost."""
        ...

    def forget(self, sequence: int) -> None:
        """Drop what is kept for a sequence outside its blocks, if anything; it may be in a launched step.

        If it comes again, it starts at the end of what its blocks hold, or at 0 where prefixes are not shared.
        """
        ...
