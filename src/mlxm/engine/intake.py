"""The way in: an order that can be carried out becomes a request with a sequence for each choice."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from itertools import count

import msgspec

from mlxm.engine.blocks import Chain, num_blocks_for
from mlxm.engine.guide import Grammars
from mlxm.engine.output import Detokenizer
from mlxm.engine.plan import BLOCK_TOKENS
from mlxm.engine.request import SEED_BITS, Order, Request, answer_of, seed_of
from mlxm.engine.sequence import Sequence
from mlxm.engine.thoughts import BoundedThoughts, Guide
from mlxm.errors import ContextTooLong, UnsupportedParameter


def random_seed() -> int:
    """A seed for those who ask for none."""
    return secrets.randbits(SEED_BITS)


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the model that answers; without `grammars` it follows none."""

    detokenizer: Detokenizer
    vocab_size: int
    context_length: int | None
    grammars: Grammars | None


class Intake:
    """Checks orders and opens requests; `num_blocks` is how many sequences can own together."""

    def __init__(
        self, model: Model, num_blocks: int, *, clock: Callable[[], float], draw_seed: Callable[[], int]
    ) -> None:
        self._model = model
        self._num_blocks = num_blocks
        self._clock = clock
        self._draw_seed = draw_seed
        self._ids = count(1)

    def open(self, order: Order) -> Request:
        """The request for an order; raises when it can never be carried out."""
        order.check(self._model.vocab_size)
        max_tokens = self._room(order)
        arrival_s = self._clock() if order.arrival_s is None else order.arrival_s
        seed = self._draw_seed() if order.sampling.seed is None else order.sampling.seed
        stop_ids = tuple(sorted(token_id for token_id in order.ending_ids if 0 <= token_id < self._model.vocab_size))
        sequences = [
            Sequence(
                id=next(self._ids),
                prompt_length=len(order.prompt_ids),
                max_tokens=max_tokens,
                tokens=list(order.prompt_ids),
                chain=Chain(order.scope),
                arrival_s=arrival_s,
                priority=order.priority,
                sampling=order.sampling,
                seed=seed_of(seed, choice),
                stop_ids=stop_ids,
                num_logprobs=order.num_logprobs,
                guide=self._guide(order),
                scores_prompt=order.prompt_logprobs and choice == 0,
            )
            for choice in range(order.num_choices)
        ]
        return Request(order, sequences, [answer_of(order, self._model.detokenizer, max_tokens) for _ in sequences])

    def _guide(self, order: Order) -> Guide | None:
        guide = None if order.grammar is None else self._grammars().guide(order.grammar)
        if order.thoughts is None:
            return guide
        raw = self._model.detokenizer.raw
        return BoundedThoughts(order.thoughts, raw=raw, vocab_size=self._model.vocab_size, inner=guide)

    def _grammars(self) -> Grammars:
        if self._model.grammars is None:
            raise UnsupportedParameter("This model follows no grammars.", hint="Leave it out.", param="response_format")
        return self._model.grammars

    def _room(self, order: Order) -> int:
        """How long the answer may be; raises when the context or the pool cannot hold what is asked for."""
        num_prompt = len(order.prompt_ids)
        asked = 1 if order.max_tokens is None else order.max_tokens
        wanted = "" if order.max_tokens is None else f" and max_tokens asks for {asked} more"
        context_length = self._model.context_length
        if context_length is not None and num_prompt + asked > context_length:
            raise ContextTooLong(
                f"The prompt has {num_prompt} tokens{wanted}, but the model's context holds {context_length}.",
                hint="Shorten the conversation or lower max_tokens.",
                param="messages",
            )
        num_slots = self._num_blocks * BLOCK_TOKENS
        if num_prompt + asked - 1 > num_slots:
            raise ContextTooLong(
                f"The prompt has {num_prompt} tokens{wanted}: that is {num_blocks_for(num_prompt + asked - 1)} blocks, "
                f"but the KV pool has {self._num_blocks}, for {num_slots} tokens.",
                hint="Shorten the conversation, lower max_tokens, or give the model more memory.",
                param="messages",
            )
        if order.max_tokens is not None:
            return order.max_tokens
        room = num_slots + 1 - num_prompt
        return room if context_length is None else min(room, context_length - num_prompt)
