"""One choice of one request: what is known of it, and how much of that is computed.

    tokens          |──── prompt ────|── sampled ──|
    num_launched    |─────────────────────────────────|   ordered from the runner; one row may run ahead
    num_computed    |───────────────────────────|         collected, and seen to be right

All three only grow, until a step is lost or the sequence is preempted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mlxm.engine.blocks import Chain
from mlxm.types import Sampling

State = Literal["new", "waiting", "running", "over"]
Rank = tuple[int, float, int]


@dataclass(slots=True, eq=False, kw_only=True)
class Sequence:
    """What the scheduler knows of a sequence; the scheduler alone changes it, the engine appends its tokens."""

    id: int
    prompt_length: int
    max_tokens: int
    tokens: list[int]
    chain: Chain
    arrival_s: float
    priority: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    state: State = "new"
    table: list[int] = field(default_factory=list)
    num_launched: int = 0
    num_computed: int = 0
    num_preempted: int = 0
    num_found: int = 0
    """Tokens found in the prefix cache whose use is not proven yet: no step with this sequence has succeeded since."""
    siblings: list[Sequence] = field(default_factory=list)
    """Other choices of the request, which will share the blocks of the prompt as soon as it is computed."""

    @property
    def rank(self) -> Rank:
        """The smaller goes first; the largest is preempted first."""
        return (self.priority, self.arrival_s, self.id)

    @property
    def end(self) -> int:
        """How many positions are computed when the answer is as long as it may be: the last token never is."""
        return self.prompt_length + self.max_tokens - 1

    @property
    def num_behind(self) -> int:
        """Known tokens before the last one that are not ordered yet: the length of the chunks to come."""
        return len(self.tokens) - 1 - self.num_launched

    @property
    def wants_row(self) -> bool:
        """Whether everything before its next token is ordered, and there is to be a next token."""
        return self.num_behind <= 0 and self.num_launched < self.end

    @property
    def is_streaming(self) -> bool:
        """Whether its first token is made or ordered: from then on somebody waits for each next one."""
        return len(self.tokens) > self.prompt_length or self.num_launched >= self.prompt_length
