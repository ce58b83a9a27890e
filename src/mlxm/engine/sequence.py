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
from mlxm.engine.thoughts import Guide
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
    stop_ids: tuple[int, ...] = ()
    """What ends the answer, and is not chosen before it has its least length."""
    num_logprobs: int | None = None
    guide: Guide | None = None
    """Says what its next token may be."""
    scores_prompt: bool = False
    """Whether logprobs of the prompt's tokens are wanted: then they are computed as rows."""
    num_scored: int = 0
    """Prompt tokens whose logprobs are handed out."""
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
    def is_scoring(self) -> bool:
        """Whether logprobs of its prompt are still to be computed; no chunk and no cached prefix gives them."""
        return self.scores_prompt and self.num_scored < self.prompt_length

    @property
    def num_behind(self) -> int:
        """Known tokens before the last one that are not ordered yet: the length of the chunks to come."""
        return 0 if self.is_scoring else len(self.tokens) - 1 - self.num_launched

    @property
    def num_known_rows(self) -> int:
        """How many rows could be ordered at once: all those of a prompt that is scored, else one."""
        return max(1, self.prompt_length - self.num_launched) if self.is_scoring else 1

    @property
    def wants_row(self) -> bool:
        """Whether everything before its next token is ordered, and there is to be a next token.

        Whoever chooses it by those before it has to wait until they are known.
        """
        is_known = self.num_launched < len(self.tokens)
        return self.num_behind <= 0 and self.num_launched < self.end and (is_known or not self.needs_history)

    @property
    def needs_history(self) -> bool:
        """Whether the choice of a token depends on the tokens before it by more than the model."""
        sampling = self.sampling
        return (
            self.guide is not None
            or sampling.repetition_penalty not in {None, 1.0}
            or (sampling.presence_penalty, sampling.frequency_penalty) != (0.0, 0.0)
        )

    @property
    def is_streaming(self) -> bool:
        """Whether its first token is made or ordered: from then on somebody waits for each next one."""
        return len(self.tokens) > self.prompt_length or self.num_launched >= self.prompt_length
