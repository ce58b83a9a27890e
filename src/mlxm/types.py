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
    """How the next token is chosen; None means the model's own default."""

    temperature: float | None = None
    seed: int | None = None


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation to be answered by `model`; `max_tokens` None means up to the context's end."""

    request_id: str
    model: str
    messages: tuple[Message, ...]
    sampling: Sampling = Sampling()
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()


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
