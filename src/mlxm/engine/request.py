"""A request in the engine: what was ordered, its choices, and what it has been told."""

from __future__ import annotations

from hashlib import blake2b

import msgspec

from mlxm.engine.output import Answer, Detokenizer
from mlxm.engine.sequence import Sequence
from mlxm.errors import InvalidRequest, ModelBroken
from mlxm.types import Sampling, Usage

SEED_BITS = 64


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of the engine.

    `max_tokens` None means as many as context and memory allow. `scope` is what the numbers of a prefix depend on
    besides its tokens. `priority`: 0 is high, 1 normal, 2 low. `arrival_s`: by the engine's clock, None means now.
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    sampling: Sampling = Sampling()
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_ids: frozenset[int] = frozenset()
    num_choices: int = 1
    priority: int = 1
    scope: bytes = b""
    arrival_s: float | None = None

    def check(self, vocab_size: int) -> None:
        """Refuse what would make the device read outside its arrays, or ask for nothing."""
        if not self.prompt_ids:
            raise InvalidRequest("The prompt is empty.", param="messages")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise InvalidRequest(f"max_tokens is {self.max_tokens}; it must be at least 1.", param="max_tokens")
        if self.num_choices < 1:
            raise InvalidRequest(f"n is {self.num_choices}; it must be at least 1.", param="n")
        if min(self.prompt_ids) < 0 or max(self.prompt_ids) >= vocab_size:
            raise ModelBroken(
                f"The tokenizer makes ids up to {max(self.prompt_ids)}, the model knows {vocab_size}.",
                hint="tokenizer.json does not belong to these weights: fetch the model again.",
            )


class Request:
    """An order and what became of it so far."""

    def __init__(self, order: Order, sequences: list[Sequence], answers: list[Answer]) -> None:
        self.order = order
        self.sequences = sequences
        self.answers = answers
        self.is_started = False
        self.num_open = len(sequences)
        self.num_deltas = 0
        self.num_cached = 0

    @property
    def usage(self) -> Usage:
        """What was computed so far; nothing before the request has left the queue."""
        if not self.is_started:
            return Usage()
        return Usage(
            prompt_tokens=len(self.order.prompt_ids),
            completion_tokens=sum(answer.num_tokens for answer in self.answers),
            cached_tokens=self.num_cached,
        )


def answer_of(order: Order, detokenizer: Detokenizer, max_tokens: int) -> Answer:
    """An answer to which nothing has been added."""
    return Answer(detokenizer, stop_ids=order.stop_ids, stops=order.stop, max_tokens=max_tokens)


def seed_of(seed: int, choice: int) -> int:
    """The seed of one choice: the request's own for the first, so that it does not depend on how many there are."""
    if choice == 0:
        return seed % (1 << SEED_BITS)
    data = (seed % (1 << SEED_BITS)).to_bytes(SEED_BITS // 8, "little") + choice.to_bytes(4, "little")
    return int.from_bytes(blake2b(data, digest_size=SEED_BITS // 8).digest(), "little")
