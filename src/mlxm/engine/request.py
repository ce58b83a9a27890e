"""A request in the engine: what was ordered, its choices, and what it has been told."""

from __future__ import annotations

import math
from hashlib import blake2b

import msgspec

from mlxm.engine.output import Answer, Detokenizer, Piece
from mlxm.engine.plan import RowLogprobs
from mlxm.engine.sequence import Sequence
from mlxm.errors import InvalidRequest, ModelBroken
from mlxm.frames import Delta, ThoughtLimit
from mlxm.types import Grammar, Likely, Sampling, TokenLogprobs, Usage

MAX_LOGPROBS = 20
SEED_BITS = 64
_RANGES = {
    "temperature": (0.0, math.inf),
    "top_p": (0.0, 1.0),
    "top_k": (-1.0, math.inf),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (1e-3, 1e3),
    "presence_penalty": (-1e3, 1e3),
    "frequency_penalty": (-1e3, 1e3),
}
"""Outside these, what the device computes may not be a number."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of the engine.

    `max_tokens` None means as many as context and memory allow. `scope` is what the numbers of a prefix depend on
    besides its tokens. `priority`: 0 is high, 1 normal, 2 low. `arrival_s`: by the engine's clock, None means now.
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    sampling: Sampling = Sampling()
    """What is None in it is not done; a temperature of None is 1."""
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_ids: frozenset[int] = frozenset()
    """The model's own, which `ignore_eos` makes tokens like others."""
    extra_stop_ids: frozenset[int] = frozenset()
    """The request's."""
    num_choices: int = 1
    priority: int = 1
    scope: bytes = b""
    arrival_s: float | None = None
    num_logprobs: int | None = None
    """How many likely tokens to name beside each one; None: no logprobs at all."""
    prompt_logprobs: bool = False
    """Whether the prompt's tokens are wanted with theirs, in Deltas without text before all others."""
    grammar: Grammar | None = None
    kept_ids: frozenset[int] = frozenset()
    """Special tokens that are spelled out in the answer's text."""
    thoughts: ThoughtLimit | None = None

    @property
    def ending_ids(self) -> frozenset[int]:
        """The tokens that end the answer."""
        return self.extra_stop_ids if self.sampling.ignore_eos else self.stop_ids | self.extra_stop_ids

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
        if self.num_logprobs is not None and not 0 <= self.num_logprobs <= min(MAX_LOGPROBS, vocab_size):
            raise InvalidRequest(
                f"{self.num_logprobs} likely tokens are asked for; it must be from 0 to {MAX_LOGPROBS}.",
                param="top_logprobs",
            )
        if self.thoughts is not None and any(not 0 <= each < vocab_size for each in self.thoughts.close_ids):
            raise ModelBroken("The model does not know the tokens that close its thoughts.", hint="Fetch it again.")
        _check_sampling(self.sampling, vocab_size)


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

    def delta(self, choice: int, piece: Piece, token_id: int, logprobs: TokenLogprobs | None) -> Delta:
        """One more token of a choice."""
        self.num_deltas += 1
        return Delta(
            request_id=self.order.request_id,
            choice=choice,
            seq=self.num_deltas - 1,
            text=piece.text,
            token_ids=(token_id,),
            finish_reason=piece.finish_reason,
            stop=piece.stop,
            logprobs=() if logprobs is None else (logprobs,),
        )

    def prompt_delta(self, choice: int, logprobs: tuple[TokenLogprobs, ...]) -> Delta:
        """More of the prompt's logprobs: no text, and no tokens of the answer."""
        self.num_deltas += 1
        return Delta(
            request_id=self.order.request_id,
            choice=choice,
            seq=self.num_deltas - 1,
            text="",
            token_ids=(),
            logprobs=logprobs,
        )


def answer_of(order: Order, detokenizer: Detokenizer, max_tokens: int) -> Answer:
    """An answer to which nothing has been added."""
    return Answer(detokenizer, stop_ids=order.ending_ids, stops=order.stop, max_tokens=max_tokens, kept=order.kept_ids)


def seed_of(seed: int, choice: int) -> int:
    """The seed of one choice: the request's own for the first, so that it does not depend on how many there are."""
    if choice == 0:
        return seed % (1 << SEED_BITS)
    data = (seed % (1 << SEED_BITS)).to_bytes(SEED_BITS // 8, "little") + choice.to_bytes(4, "little")
    return int.from_bytes(blake2b(data, digest_size=SEED_BITS // 8).digest(), "little")


def token_logprobs(token_id: int, found: RowLogprobs, detokenizer: Detokenizer) -> TokenLogprobs:
    """What a row found out about a token, with bytes beside the ids."""
    return TokenLogprobs(
        token_id=token_id,
        raw=detokenizer.raw(token_id),
        logprob=found.logprob,
        top=tuple(Likely(other, detokenizer.raw(other), logprob) for other, logprob in found.top),
    )


def _check_sampling(sampling: Sampling, vocab_size: int) -> None:
    asked = msgspec.structs.asdict(sampling)
    for name, (lowest, highest) in _RANGES.items():
        value = asked[name]
        if value is not None and not (math.isfinite(value) and lowest <= value <= highest):
            raise InvalidRequest(f"{name} is {value:g}; the model cannot work with that.", param=name)
    if any(not math.isfinite(bias) for _, bias in sampling.logit_bias):
        raise InvalidRequest("A logit_bias is no finite number.", param="logit_bias")
    unknown = [token_id for token_id, _ in sampling.logit_bias if not 0 <= token_id < vocab_size]
    if unknown:
        raise InvalidRequest(
            f"logit_bias names the token id {unknown[0]}, but the model's go from 0 to {vocab_size - 1}.",
            param="logit_bias",
        )
