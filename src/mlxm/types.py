"""The neutral types that every floor speaks: requests, events and the one-method Backend protocol.

They know no API dialect, no HTTP and no MLX. Dialects translate to and from them (`wire`), backends answer them.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Literal, Protocol

import msgspec

Role = Literal["system", "developer", "user", "assistant"]
FinishReason = Literal["stop", "length"]


class TextPart(msgspec.Struct, frozen=True, tag="text"):
    """A run of text inside a message."""

    text: str


Part = TextPart


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One turn of a conversation; the parts keep their order."""

    role: Role
    content: tuple[Part, ...]
    name: str | None = None


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How the next token is chosen; None means the model's own default.

    `presence_penalty` and `frequency_penalty` look at the answer, `repetition_penalty` at the prompt as well.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Added to the logits of these token ids."""
    min_tokens: int = 0
    """No stop token is chosen before."""
    ignore_eos: bool = False
    """The model's own stop tokens end nothing."""


class Grammar(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer has to look like: a JSON Schema, a regular expression, a JSON list of choices, or Lark rules.

    With `after`, it holds only from the first occurrence of that text on; before it the answer is free.
    """

    kind: Literal["json_schema", "json_object", "regex", "choice", "lark"]
    source: str
    after: str | None = None


class Likely(msgspec.Struct, frozen=True, array_like=True):
    """A token that the model could have chosen; `raw` are the bytes that it stands for."""

    token_id: int
    raw: bytes
    logprob: float


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """A token of the answer or of the prompt, and the likeliest ones in its place; None: nothing came before it."""

    token_id: int
    raw: bytes
    logprob: float | None
    top: tuple[Likely, ...] = ()


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation to be answered by `model`; `max_tokens` None means up to the context's end."""

    request_id: str
    model: str
    messages: tuple[Message, ...]
    sampling: Sampling = Sampling()
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    num_choices: int = 1
    priority: int = 1
    """0 is high, 1 normal, 2 low."""
    num_logprobs: int | None = None
    """How many likely tokens to name beside each token of the answer; None: no logprobs at all."""
    grammar: Grammar | None = None


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens really processed; `cached_tokens` are those of the prompt whose prefill was skipped."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


class Started(msgspec.Struct, frozen=True, tag="started"):
    """The prompt is accepted and its length known; always the first event."""

    prompt_tokens: int


class TextDelta(msgspec.Struct, frozen=True, tag="text_delta"):
    """More text of one choice, with the tokens that made it."""

    choice: int
    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()


class ChoiceEnded(msgspec.Struct, frozen=True, tag="choice_ended"):
    """One choice is complete."""

    choice: int
    reason: FinishReason


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """The whole request is complete; always the last event, exactly once. A failure raises MlxmError instead."""

    usage: Usage


Event = Started | TextDelta | ChoiceEnded | Ended


class Backend(Protocol):
    """Whatever can answer a chat: a local model, a cloud, a server elsewhere.

    Closing the generator early cancels the request and frees all that it held.
    """

    def chat(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        """Answer `request`: Started first, Ended last."""
        ...
