"""Anthropic's messages: the neutral events of an answer as one whole message, or as the events of a stream."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

import msgspec
from msgspec import Raw, Struct

from mlxm.types import (
    ChoiceEnded,
    Ended,
    Event,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from mlxm.wire import sse
from mlxm.wire.sealed import seal, sign

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]

PING: Final = sse.event("ping", b'{"type":"ping"}')


class MessageUsage(Struct, frozen=True, kw_only=True):
    """Tokens of the whole request; those of the prompt that came out of the cache are counted apart."""

    input_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0
    output_tokens: int = 0
    service_tier: Literal["standard"] = "standard"

    @classmethod
    def of(cls, usage: Usage) -> MessageUsage:
        """The neutral usage in this dialect's words."""
        return cls(
            input_tokens=usage.prompt_tokens - usage.cached_tokens,
            cache_read_input_tokens=usage.cached_tokens,
            output_tokens=usage.completion_tokens,
        )


class Text(Struct, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """What the assistant said."""

    text: str
    citations: None = None


class Thinking(Struct, frozen=True, kw_only=True, tag_field="type", tag="thinking"):
    """What it thought before."""

    thinking: str
    signature: str


class ToolUse(Struct, frozen=True, kw_only=True, tag_field="type", tag="tool_use"):
    """A call; in a stream its input comes afterwards, in pieces."""

    id: str
    name: str
    input: Raw


Content = Text | Thinking | ToolUse


class Heading(Struct, frozen=True, kw_only=True):
    """What stands at the head of an answer."""

    id: str
    model: str
    shows_thinking: bool = True

    @classmethod
    def of(cls, request_id: str, model: str, *, shows_thinking: bool) -> Heading:
        """The heading of the answer to a request."""
        return cls(id=f"msg_{request_id.removeprefix('req_')}", model=model, shows_thinking=shows_thinking)


class Message(Struct, frozen=True, kw_only=True):
    """The whole answer, or its beginning."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: tuple[Content, ...] = ()
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    usage: MessageUsage


class _Block:
    """One block of an answer, and what of it has come so far."""

    def __init__(self, kind: Literal["thinking", "text", "tool_use"], call: ToolCallStarted | None = None) -> None:
        self.kind = kind
        self.call = call
        self.pieces: list[str] = []
        self.signature: str | None = None

    def content(self, *, shows_thinking: bool) -> Content:
        """All of it."""
        whole = "".join(self.pieces)
        if self.call is not None:
            return ToolUse(id=self.call.id, name=self.call.name, input=_input(whole))
        if self.kind == "text":
            return Text(text=whole)
        return Thinking(
            thinking=whole if shows_thinking else "", signature=self.signed(whole, shows_thinking=shows_thinking)
        )

    def signed(self, whole: str, *, shows_thinking: bool) -> str:
        """The signature of a thought: its maker's, or one of ours."""
        if self.signature is not None:
            return self.signature
        return sign(whole) if shows_thinking else seal(whole)

    def opening(self) -> Content:
        """How it begins in a stream."""
        if self.call is not None:
            return ToolUse(id=self.call.id, name=self.call.name, input=Raw(b"{}"))
        return Text(text="") if self.kind == "text" else Thinking(thinking="", signature="")


def _input(arguments: str) -> Raw:
    """A call's arguments; what was cut off in the middle is no JSON, and cannot be told here."""
    try:
        msgspec.json.decode(arguments, type=dict[str, Raw])
    except msgspec.MsgspecError:
        return Raw(b"{}")
    return Raw(arguments.encode())


def message(heading: Heading, events: Iterable[Event]) -> bytes:
    """The whole answer out of all events of a request."""
    blocks: list[_Block] = []
    usage, ended = Usage(), ChoiceEnded(choice=0, reason="stop")
    for event in events:
        match event:
            case Ended():
                usage = event.usage
            case ChoiceEnded():
                ended = event
            case _:
                _gather(blocks, event)
    return msgspec.json.encode(
        Message(
            id=heading.id,
            model=heading.model,
            content=tuple(block.content(shows_thinking=heading.shows_thinking) for block in blocks),
            stop_reason=_stop_reason(ended),
            stop_sequence=ended.stop,
            usage=MessageUsage.of(usage),
        )
    )


def _gather(blocks: list[_Block], event: Event) -> bool:
    """Put what an event says into the last block, or into a new one; whether it is a new one."""
    num_blocks = len(blocks)
    match event:
        case ReasoningDelta(text=text, signature=signature) if text or signature is not None:
            block = _last(blocks, "thinking")
            block.pieces.append(text)
            block.signature = block.signature if signature is None else signature
        case TextDelta(text=text) if text:
            _last(blocks, "text").pieces.append(text)
        case ToolCallStarted():
            blocks.append(_Block("tool_use", event))
        case ToolCallDelta(index=index, arguments=arguments):
            _call(blocks, index).pieces.append(arguments)
    return len(blocks) > num_blocks


def _last(blocks: list[_Block], kind: Literal["thinking", "text"]) -> _Block:
    if not blocks or blocks[-1].kind != kind:
        blocks.append(_Block(kind))
    return blocks[-1]


def _call(blocks: list[_Block], index: int) -> _Block:
    return next(block for block in reversed(blocks) if block.call is not None and block.call.index == index)


def _stop_reason(ended: ChoiceEnded) -> StopReason:
    match ended.reason:
        case "length":
            return "max_tokens"
        case "tool_calls":
            return "tool_use"
        case "stop":
            return "end_turn" if ended.stop is None else "stop_sequence"


# ── the stream ───────────────────────────────────────────────────────────────────────────────────


class MessageStart(Struct, frozen=True, kw_only=True, tag_field="type", tag="message_start"):
    """The prompt is accepted."""

    message: Message


class BlockStart(Struct, frozen=True, kw_only=True, tag_field="type", tag="content_block_start"):
    """A block begins."""

    index: int
    content_block: Content


class TextPiece(Struct, frozen=True, tag_field="type", tag="text_delta"):
    """More text."""

    text: str


class ThinkingPiece(Struct, frozen=True, tag_field="type", tag="thinking_delta"):
    """More of a thought."""

    thinking: str


class SignaturePiece(Struct, frozen=True, tag_field="type", tag="signature_delta"):
    """A thought is complete."""

    signature: str


class InputPiece(Struct, frozen=True, tag_field="type", tag="input_json_delta"):
    """More of a call's input, as JSON."""

    partial_json: str


class BlockDelta(Struct, frozen=True, kw_only=True, tag_field="type", tag="content_block_delta"):
    """More of a block."""

    index: int
    delta: TextPiece | ThinkingPiece | SignaturePiece | InputPiece


class BlockStop(Struct, frozen=True, kw_only=True, tag_field="type", tag="content_block_stop"):
    """A block is complete."""

    index: int


class Stop(Struct, frozen=True, kw_only=True):
    """Why the answer ended."""

    stop_reason: StopReason
    stop_sequence: str | None


class MessageDelta(Struct, frozen=True, kw_only=True, tag_field="type", tag="message_delta"):
    """The answer is complete, and this is what it took."""

    delta: Stop
    usage: MessageUsage


class MessageStop(Struct, frozen=True, tag_field="type", tag="message_stop"):
    """Nothing follows."""


StreamEvent = MessageStart | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop


class EventWriter:
    """Turns the events of one request into the bytes of its stream; its blocks come one after the other."""

    def __init__(self, heading: Heading) -> None:
        self._heading = heading
        self._blocks: list[_Block] = []
        self._ended = ChoiceEnded(choice=0, reason="stop")
        self._encode = msgspec.json.Encoder().encode

    def write(self, event: Event) -> bytes:
        """The bytes for one event; none where this dialect says nothing."""
        match event:
            case Started(prompt_tokens=prompt_tokens):
                return self._event(MessageStart(message=self._beginning(prompt_tokens))) + PING
            case ChoiceEnded():
                self._ended = event
                return b""
            case Ended(usage=usage):
                stop = Stop(stop_reason=_stop_reason(self._ended), stop_sequence=self._ended.stop)
                delta = MessageDelta(delta=stop, usage=MessageUsage.of(usage))
                return self._close() + self._event(delta) + self._event(MessageStop())
            case _:
                return self._content(event)

    def _beginning(self, prompt_tokens: int) -> Message:
        return Message(id=self._heading.id, model=self._heading.model, usage=MessageUsage(input_tokens=prompt_tokens))

    def _content(self, event: Event) -> bytes:
        before = self._close_if_over(event)
        if _gather(self._blocks, event):
            opening = self._blocks[-1].opening()
            before += self._event(BlockStart(index=len(self._blocks) - 1, content_block=opening))
        piece = self._piece(event)
        return before if piece is None else before + self._event(BlockDelta(index=len(self._blocks) - 1, delta=piece))

    def _piece(self, event: Event) -> TextPiece | ThinkingPiece | InputPiece | None:
        match event:
            case TextDelta(text=text) if text:
                return TextPiece(text)
            case ReasoningDelta(text=text) if text and self._heading.shows_thinking:
                return ThinkingPiece(text)
            case ToolCallDelta(arguments=arguments) if arguments:
                return InputPiece(arguments)
            case _:
                return None

    def _close_if_over(self, event: Event) -> bytes:
        """The end of the last block when an event begins another one."""
        if not self._blocks:
            return b""
        match event:
            case TextDelta(text=text):
                is_over = bool(text) and self._blocks[-1].kind != "text"
            case ReasoningDelta(text=text, signature=signature):
                is_over = (bool(text) or signature is not None) and self._blocks[-1].kind != "thinking"
            case _:
                is_over = isinstance(event, ToolCallStarted)
        return self._close() if is_over else b""

    def _close(self) -> bytes:
        if not self._blocks:
            return b""
        index, block = len(self._blocks) - 1, self._blocks[-1]
        signed = b""
        if block.kind == "thinking":
            signature = block.signed("".join(block.pieces), shows_thinking=self._heading.shows_thinking)
            signed = self._event(BlockDelta(index=index, delta=SignaturePiece(signature)))
        return signed + self._event(BlockStop(index=index))

    def _event(self, event: StreamEvent) -> bytes:
        return sse.event(str(event.__struct_config__.tag), self._encode(event))


class TokenCount(Struct, frozen=True):
    """The answer to `POST /v1/messages/count_tokens`."""

    input_tokens: int
