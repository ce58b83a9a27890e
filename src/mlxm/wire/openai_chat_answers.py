"""OpenAI's chat completions: the neutral events of an answer as one whole completion, or as the chunks of a stream."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from mlxm.types import (
    ChoiceEnded,
    Ended,
    Event,
    FinishReason,
    ReasoningDelta,
    Started,
    TextDelta,
    TokenLogprobs,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from mlxm.wire import sse
from mlxm.wire.openai_usage import CompletionUsage, Heading, finite, shown_token

KIND = "chatcmpl"


class LikelyToken(Struct, frozen=True, kw_only=True):
    """A token that could have stood there."""

    token: str
    logprob: float
    bytes: tuple[int, ...]


class ChosenToken(LikelyToken, frozen=True, kw_only=True):
    """A token of the answer."""

    top_logprobs: tuple[LikelyToken, ...]


class ChoiceLogprobs(Struct, frozen=True, kw_only=True):
    """How likely the tokens of the answer were."""

    content: tuple[ChosenToken, ...]
    refusal: None = None

    @classmethod
    def of(cls, tokens: Iterable[TokenLogprobs]) -> ChoiceLogprobs:
        """The neutral logprobs in this dialect's words."""
        return cls(content=tuple(map(_chosen, tokens)))


def _chosen(token: TokenLogprobs) -> ChosenToken:
    return ChosenToken(
        token=shown_token(token.raw),
        logprob=0.0 if token.logprob is None else finite(token.logprob),
        bytes=tuple(token.raw),
        top_logprobs=tuple(
            LikelyToken(token=shown_token(each.raw), logprob=finite(each.logprob), bytes=tuple(each.raw))
            for each in token.top
        ),
    )


# ── the whole answer ─────────────────────────────────────────────────────────────────────────────


class CalledFunction(Struct, frozen=True):
    """A function and its arguments, which are JSON."""

    name: str
    arguments: str


class Call(Struct, frozen=True, kw_only=True):
    """A call of a tool."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class ChoiceMessage(Struct, frozen=True, kw_only=True):
    """The answer of one choice."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: tuple[Call, ...] | UnsetType = UNSET


class Choice(Struct, frozen=True, kw_only=True):
    """One answer."""

    index: int
    message: ChoiceMessage
    logprobs: ChoiceLogprobs | None = None
    finish_reason: FinishReason


class ChatCompletion(Struct, frozen=True, kw_only=True):
    """The whole answer at once."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: tuple[Choice, ...]
    usage: CompletionUsage


@dataclass
class _Call:
    id: str
    name: str
    arguments: list[str] = field(default_factory=list)


@dataclass
class _Gathered:
    """What one choice has said so far."""

    texts: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: dict[int, _Call] = field(default_factory=dict)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    reason: FinishReason = "stop"

    def add(self, event: Event) -> None:
        match event:
            case TextDelta(text=text, logprobs=logprobs):
                self.texts.append(text)
                self.logprobs += logprobs
            case ReasoningDelta(text=text):
                self.reasoning.append(text)
            case ToolCallStarted(index=index, id=call_id, name=name):
                self.calls[index] = _Call(call_id, name)
            case ToolCallDelta(index=index, arguments=arguments):
                self.calls[index].arguments.append(arguments)
            case ChoiceEnded(reason=reason):
                self.reason = reason

    def message(self) -> ChoiceMessage:
        text, reasoning = "".join(self.texts), "".join(self.reasoning)
        calls = tuple(
            Call(id=call.id, function=CalledFunction(call.name, "".join(call.arguments)))
            for _, call in sorted(self.calls.items())
        )
        return ChoiceMessage(
            content=text if text or not calls else None,
            reasoning_content=reasoning or UNSET,
            tool_calls=calls or UNSET,
        )


def completion(heading: Heading, events: Iterable[Event], *, has_logprobs: bool = False) -> bytes:
    """The whole answer out of all events of a request."""
    gathered: dict[int, _Gathered] = {}
    usage = Usage()
    for event in events:
        if isinstance(event, Ended):
            usage = event.usage
        elif not isinstance(event, Started):
            gathered.setdefault(event.choice, _Gathered()).add(event)
    answer = ChatCompletion(
        id=heading.id,
        created=heading.created,
        model=heading.model,
        choices=tuple(_choice(index, gathered[index], has_logprobs=has_logprobs) for index in sorted(gathered)),
        usage=CompletionUsage.of(usage),
    )
    return msgspec.json.encode(answer)


def _choice(index: int, gathered: _Gathered, *, has_logprobs: bool) -> Choice:
    return Choice(
        index=index,
        message=gathered.message(),
        logprobs=ChoiceLogprobs.of(gathered.logprobs) if has_logprobs else None,
        finish_reason=gathered.reason,
    )


# ── the stream ───────────────────────────────────────────────────────────────────────────────────


class FunctionDelta(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """More of a call's function: its name once, then pieces of its arguments."""

    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class CallDelta(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """More of a call; who it is stands in its first delta only."""

    index: int
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    function: FunctionDelta


class ChoiceDelta(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is new in one choice."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: tuple[CallDelta, ...] | UnsetType = UNSET


class ChunkChoice(Struct, frozen=True, kw_only=True):
    """One choice inside a chunk."""

    index: int
    delta: ChoiceDelta
    logprobs: ChoiceLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatCompletionChunk(Struct, frozen=True, kw_only=True):
    """One event of a stream; `usage` is left out when nobody asked for it."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: tuple[ChunkChoice, ...]
    usage: CompletionUsage | UnsetType | None = UNSET


class ChunkWriter:
    """Turns the events of one request into the bytes of its stream."""

    def __init__(self, heading: Heading, *, include_usage: bool, num_choices: int = 1) -> None:
        self._heading = heading
        self._include_usage = include_usage
        self._num_choices = num_choices
        self._encode = msgspec.json.Encoder().encode

    def write(self, event: Event) -> bytes:
        """The bytes for one event; none where this dialect says nothing."""
        match event:
            case TextDelta(choice=choice, text=text, logprobs=logprobs):
                return self._text(choice, text, logprobs)
            case ReasoningDelta(choice=choice, text=text):
                return self._choice(choice, ChoiceDelta(reasoning_content=text)) if text else b""
            case ToolCallStarted() | ToolCallDelta():
                return self._choice(event.choice, ChoiceDelta(tool_calls=(_call_delta(event),)))
            case ChoiceEnded(choice=choice, reason=reason):
                return self._choice(choice, ChoiceDelta(), reason=reason)
            case Started():
                first = ChoiceDelta(role="assistant", content="")
                return b"".join(self._choice(choice, first) for choice in range(self._num_choices))
            case Ended(usage=usage):
                return self._chunk((), CompletionUsage.of(usage)) if self._include_usage else b""

    def _text(self, choice: int, text: str, logprobs: tuple[TokenLogprobs, ...]) -> bytes:
        """A token may end in the middle of a character: it has a logprob then, and no text of its own yet."""
        if not text and not logprobs:
            return b""
        told = ChoiceLogprobs.of(logprobs) if logprobs else None
        return self._choice(choice, ChoiceDelta(content=text), logprobs=told)

    def _choice(
        self,
        index: int,
        delta: ChoiceDelta,
        *,
        logprobs: ChoiceLogprobs | None = None,
        reason: FinishReason | None = None,
    ) -> bytes:
        choice = ChunkChoice(index=index, delta=delta, logprobs=logprobs, finish_reason=reason)
        return self._chunk((choice,), None)

    def _chunk(self, choices: tuple[ChunkChoice, ...], usage: CompletionUsage | None) -> bytes:
        chunk = ChatCompletionChunk(
            id=self._heading.id,
            created=self._heading.created,
            model=self._heading.model,
            choices=choices,
            usage=usage if self._include_usage else UNSET,
        )
        return sse.data(self._encode(chunk))


def _call_delta(event: ToolCallStarted | ToolCallDelta) -> CallDelta:
    if isinstance(event, ToolCallDelta):
        return CallDelta(index=event.index, function=FunctionDelta(arguments=event.arguments))
    function = FunctionDelta(name=event.name, arguments="")
    return CallDelta(index=event.index, id=event.id, type="function", function=function)
