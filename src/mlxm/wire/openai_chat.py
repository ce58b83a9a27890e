"""OpenAI's chat completions: what `POST /v1/chat/completions` takes and answers.

Pure translation: bytes to a neutral request, neutral events to chunks or one whole completion.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from mlxm.errors import InvalidRequest
from mlxm.types import (
    ChatRequest,
    ChoiceEnded,
    Ended,
    Event,
    FinishReason,
    Message,
    Role,
    Sampling,
    Started,
    TextDelta,
    TextPart,
    Usage,
)
from mlxm.wire import sse
from mlxm.wire.fields import decode, refuse_unknown, split_fields

MAX_TOKENS = 2**31 - 1
MAX_TEXT_LENGTH = 64 * 1024 * 1024

Text = Annotated[str, Meta(max_length=MAX_TEXT_LENGTH)]
Name = Annotated[str, Meta(min_length=1, max_length=256)]
StopText = Annotated[str, Meta(min_length=1, max_length=1024)]
NumTokens = Annotated[int, Meta(ge=1, le=MAX_TOKENS)]

# Values which ask for what happens anyway; any other value of these would be dropped in silence, so it is refused.
NO_OPS: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("auto", "none"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "min_p": (0,),
    "modalities": (["text"],),
    "moderation": (),
    "n": (1,),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": (),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("auto", "none"),
    "tools": ([],),
    "top_k": (0, -1),
    "top_logprobs": (),
    "top_p": (1,),
    "verbosity": ("medium",),
    "web_search_options": (),
}

# What clients send for their own books: it can change nothing here, and the answer's header names it.
TOLERATED = frozenset({"metadata", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "user"})

# What clients send back when they put an answer into the next request as they got it.
MESSAGE_NO_OPS: dict[str, tuple[Any, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "reasoning_content": ("",),
    "refusal": (),
    "tool_call_id": (),
    "tool_calls": ([],),
}


# ── requests ─────────────────────────────────────────────────────────────────────────────────────


class TextContent(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="text"):
    """A text part of a message."""

    text: Text


class ChatMessage(Struct, frozen=True, kw_only=True):
    """One turn."""

    role: Role
    content: Text | Annotated[tuple[TextContent, ...], Meta(min_length=1, max_length=10_000)]
    name: Name | None = None

    def to_message(self) -> Message:
        """The neutral form."""
        texts = (self.content,) if isinstance(self.content, str) else tuple(part.text for part in self.content)
        return Message(role=self.role, content=tuple(TextPart(text) for text in texts), name=self.name)


class StreamOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a stream carries beside the text."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class ChatCompletionRequest(Struct, frozen=True, kw_only=True):
    """The fields that act."""

    model: Name
    messages: Annotated[tuple[ChatMessage, ...], Meta(min_length=1, max_length=100_000)]
    max_tokens: NumTokens | None = None
    max_completion_tokens: NumTokens | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: StopText | Annotated[tuple[StopText, ...], Meta(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    def to_chat(self, request_id: str) -> ChatRequest:
        """The neutral form."""
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        return ChatRequest(
            request_id=request_id,
            model=self.model,
            messages=tuple(message.to_message() for message in self.messages),
            sampling=Sampling(temperature=self.temperature, seed=self.seed),
            max_tokens=self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens,
            stop=() if stop is None else stop,
        )


class Asked(Struct, frozen=True):
    """A request that was understood, and the names of its fields that change nothing."""

    request: ChatCompletionRequest
    ignored: tuple[str, ...] = ()


def read_request(body: bytes) -> Asked:
    """Decode a body strictly; InvalidRequest or UnsupportedParameter names what cannot be served."""
    ignored = refuse_unknown(
        split_fields(body),
        known=frozenset(ChatCompletionRequest.__struct_fields__),
        no_ops=NO_OPS,
        tolerated=TOLERATED,
    )
    request = decode(body, ChatCompletionRequest)
    _refuse_unknown_in_messages(body)
    _check_combinations(request)
    return Asked(request, ignored)


class _RawMessages(Struct):
    messages: list[dict[str, Raw]]


def _refuse_unknown_in_messages(body: bytes) -> None:
    known = frozenset(ChatMessage.__struct_fields__)
    for index, fields in enumerate(decode(body, _RawMessages).messages):
        if fields.keys() - known:
            refuse_unknown(fields, known=known, no_ops=MESSAGE_NO_OPS, inside=f"messages[{index}].")


def _check_combinations(request: ChatCompletionRequest) -> None:
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest("stream_options needs stream to be true.", param="stream_options")
    limits = {request.max_tokens, request.max_completion_tokens} - {None}
    if len(limits) > 1:
        raise InvalidRequest(
            "max_tokens and max_completion_tokens differ.",
            hint="Send max_completion_tokens only.",
            param="max_tokens",
        )


# ── answers ──────────────────────────────────────────────────────────────────────────────────────


class PromptTokensDetails(Struct, frozen=True):
    """How much of the prompt was known already."""

    cached_tokens: int


class CompletionUsage(Struct, frozen=True, kw_only=True):
    """Tokens of the whole request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails

    @classmethod
    def of(cls, usage: Usage) -> CompletionUsage:
        """The neutral usage in this dialect's words."""
        return cls(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            total_tokens=usage.prompt_tokens + usage.completion_tokens,
            prompt_tokens_details=PromptTokensDetails(usage.cached_tokens),
        )


class ChoiceMessage(Struct, frozen=True, kw_only=True):
    """The answer of one choice."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(Struct, frozen=True, kw_only=True):
    """One answer."""

    index: int
    message: ChoiceMessage
    logprobs: None = None
    finish_reason: FinishReason


class ChatCompletion(Struct, frozen=True, kw_only=True):
    """The whole answer at once."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: tuple[Choice, ...]
    usage: CompletionUsage


class ChoiceDelta(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is new in one choice."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChunkChoice(Struct, frozen=True, kw_only=True):
    """One choice inside a chunk."""

    index: int
    delta: ChoiceDelta
    logprobs: None = None
    finish_reason: FinishReason | None = None


class ChatCompletionChunk(Struct, frozen=True, kw_only=True):
    """One event of a stream; `usage` is left out when nobody asked for it."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: tuple[ChunkChoice, ...]
    usage: CompletionUsage | UnsetType | None = UNSET


class Heading(Struct, frozen=True, kw_only=True):
    """What stands at the head of every answer and every chunk of it; `created` in unix seconds."""

    id: str
    created: int
    model: str

    @classmethod
    def of(cls, chat: ChatRequest, created: int) -> Heading:
        """The heading of the answer to `chat`."""
        return cls(id=f"chatcmpl-{chat.request_id.removeprefix('req_')}", created=created, model=chat.model)


def completion(heading: Heading, events: Iterable[Event]) -> bytes:
    """The whole answer out of all events of a request."""
    texts: dict[int, list[str]] = {}
    reasons: dict[int, FinishReason] = {}
    usage = Usage()
    for event in events:
        if isinstance(event, TextDelta):
            texts.setdefault(event.choice, []).append(event.text)
        elif isinstance(event, ChoiceEnded):
            reasons[event.choice] = event.reason
        elif isinstance(event, Ended):
            usage = event.usage
    choices = tuple(
        Choice(index=index, message=ChoiceMessage(content="".join(texts.get(index, ()))), finish_reason=reasons[index])
        for index in sorted(reasons)
    )
    answer = ChatCompletion(
        id=heading.id, created=heading.created, model=heading.model, choices=choices, usage=CompletionUsage.of(usage)
    )
    return msgspec.json.encode(answer)


class ChunkWriter:
    """Turns the events of one request into the bytes of its stream."""

    def __init__(self, heading: Heading, *, include_usage: bool) -> None:
        self._heading = heading
        self._include_usage = include_usage
        self._encode = msgspec.json.Encoder().encode

    def write(self, event: Event) -> bytes:
        """The bytes for one event; none where this dialect says nothing."""
        match event:
            case Started():
                return self._choice(0, ChoiceDelta(role="assistant", content=""))
            case TextDelta(choice=choice, text=text):
                return self._choice(choice, ChoiceDelta(content=text)) if text else b""
            case ChoiceEnded(choice=choice, reason=reason):
                return self._choice(choice, ChoiceDelta(), reason)
            case Ended(usage=usage):
                return self._chunk((), CompletionUsage.of(usage)) if self._include_usage else b""
            case _:
                return b""

    def _choice(self, index: int, delta: ChoiceDelta, reason: FinishReason | None = None) -> bytes:
        return self._chunk((ChunkChoice(index=index, delta=delta, finish_reason=reason),), None)

    def _chunk(self, choices: tuple[ChunkChoice, ...], usage: CompletionUsage | None) -> bytes:
        chunk = ChatCompletionChunk(
            id=self._heading.id,
            created=self._heading.created,
            model=self._heading.model,
            choices=choices,
            usage=usage if self._include_usage else UNSET,
        )
        return sse.data(self._encode(chunk))
