"""OpenAI's responses: the neutral events of an answer as the numbered events of a stream, and what they come to."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from msgspec import Struct

from mlxm.types import (
    ChoiceEnded,
    Ended,
    Event,
    ReasoningDelta,
    Started,
    TextDelta,
    TokenLogprobs,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from mlxm.wire import sse
from mlxm.wire.openai_chat_answers import ChosenToken
from mlxm.wire.openai_responses_answers import (
    Heading,
    IncompleteDetails,
    Item,
    Kind,
    Output,
    OutputText,
    ReasoningText,
    Response,
    ResponseError,
    ResponseUsage,
    told_logprobs,
)


class _OfResponse(Struct, frozen=True, kw_only=True, tag_field="type"):
    sequence_number: int
    response: Response


class Created(_OfResponse, frozen=True, kw_only=True, tag="response.created"):
    """The request is understood."""


class InProgress(_OfResponse, frozen=True, kw_only=True, tag="response.in_progress"):
    """The answer begins."""


class Completed(_OfResponse, frozen=True, kw_only=True, tag="response.completed"):
    """The answer is whole."""


class Incomplete(_OfResponse, frozen=True, kw_only=True, tag="response.incomplete"):
    """The answer is as long as it may be."""


class Failed(_OfResponse, frozen=True, kw_only=True, tag="response.failed"):
    """There will be no more of it."""


class _OfItem(Struct, frozen=True, kw_only=True, tag_field="type"):
    sequence_number: int
    output_index: int
    item: Item


class ItemAdded(_OfItem, frozen=True, kw_only=True, tag="response.output_item.added"):
    """An item begins."""


class ItemDone(_OfItem, frozen=True, kw_only=True, tag="response.output_item.done"):
    """An item is complete."""


class _InItem(Struct, frozen=True, kw_only=True, tag_field="type"):
    sequence_number: int
    item_id: str
    output_index: int


class _InPart(_InItem, frozen=True, kw_only=True):
    content_index: int = 0


class PartAdded(_InPart, frozen=True, kw_only=True, tag="response.content_part.added"):
    """An item's part begins."""

    part: OutputText | ReasoningText


class PartDone(_InPart, frozen=True, kw_only=True, tag="response.content_part.done"):
    """An item's part is complete."""

    part: OutputText | ReasoningText


class TextMore(_InPart, frozen=True, kw_only=True, tag="response.output_text.delta"):
    """More text."""

    delta: str
    logprobs: tuple[ChosenToken, ...] = ()


class TextDone(_InPart, frozen=True, kw_only=True, tag="response.output_text.done"):
    """The whole text."""

    text: str
    logprobs: tuple[ChosenToken, ...] = ()


class ThoughtMore(_InPart, frozen=True, kw_only=True, tag="response.reasoning_text.delta"):
    """More of a thought."""

    delta: str


class ThoughtDone(_InPart, frozen=True, kw_only=True, tag="response.reasoning_text.done"):
    """The whole thought."""

    text: str


class ArgumentsMore(_InItem, frozen=True, kw_only=True, tag="response.function_call_arguments.delta"):
    """More of a call's arguments."""

    delta: str


class ArgumentsDone(_InItem, frozen=True, kw_only=True, tag="response.function_call_arguments.done"):
    """All of a call's arguments."""

    name: str
    arguments: str


StreamEvent = (
    Created
    | InProgress
    | Completed
    | Incomplete
    | Failed
    | ItemAdded
    | ItemDone
    | PartAdded
    | PartDone
    | TextMore
    | TextDone
    | ThoughtMore
    | ThoughtDone
    | ArgumentsMore
    | ArgumentsDone
)


class EventWriter:
    """Turns the events of one request into the bytes of its stream, and keeps the response that they make."""

    def __init__(self, heading: Heading) -> None:
        self.response = heading.response
        self._heading = heading
        self._outputs: list[Output] = []
        self._done: list[Item] = []
        self._num_events = 0
        self._num_thought = 0
        self._is_cut = False
        self._encode = msgspec.json.Encoder().encode

    def write(self, event: Event) -> bytes:
        """The bytes for one event; none where this dialect says nothing."""
        match event:
            case Started():
                created = Created(sequence_number=self._number(), response=self.response)
                return self._bytes(created, InProgress(sequence_number=self._number(), response=self.response))
            case ChoiceEnded(reason=reason):
                self._is_cut = reason == "length"
                return b""
            case Ended(usage=usage):
                return self._finish(usage)
            case _:
                return self._content(event)

    def _content(self, event: TextDelta | ReasoningDelta | ToolCallStarted | ToolCallDelta) -> bytes:
        match event:
            case ReasoningDelta(text=text, token_ids=token_ids):
                self._num_thought += len(token_ids)
                return self._more("reasoning", text) if text else b""
            case TextDelta(text=text, logprobs=logprobs):
                return self._more("message", text, logprobs) if text or logprobs else b""
            case ToolCallStarted():
                return self._close() + self._open(Output("function_call", self._suffix(), event))
            case ToolCallDelta(arguments=arguments):
                return self._argue(arguments) if arguments else b""

    def write_error(self, body: bytes) -> bytes:
        """How a stream breaks off, given the error's body: as an error, and as the end of the response."""
        told = msgspec.json.decode(body)
        error = ResponseError(told["error"]["code"], told["error"]["message"])
        flat = {"code": error.code, "message": error.message, "param": told["error"]["param"]}
        whole = self._encode({**told, **flat, "sequence_number": self._number()})
        self.response = msgspec.structs.replace(
            self.response, status="failed", error=error, output=tuple(self._unfinished())
        )
        failed = Failed(sequence_number=self._number(), response=self.response)
        return sse.event("error", whole) + self._bytes(failed)

    def cancelled(self) -> Response:
        """The response as it is when nobody wants more of it."""
        return msgspec.structs.replace(self.response, status="cancelled", output=tuple(self._unfinished()))

    def _unfinished(self) -> Iterable[Item]:
        yield from self._done
        if len(self._outputs) > len(self._done):
            yield self._outputs[-1].item("incomplete", is_sealed=self._heading.is_sealed)

    def _more(self, kind: Kind, text: str, logprobs: tuple[TokenLogprobs, ...] = ()) -> bytes:
        before = b""
        if len(self._outputs) == len(self._done) or self._outputs[-1].kind != kind:
            before = self._close() + self._open(Output(kind, self._suffix()))
        output, index = self._outputs[-1], len(self._outputs) - 1
        output.pieces.append(text)
        output.logprobs += logprobs
        number = self._number()
        if kind == "reasoning":
            more: StreamEvent = ThoughtMore(sequence_number=number, item_id=output.id, output_index=index, delta=text)
        else:
            told = told_logprobs(list(logprobs))
            more = TextMore(sequence_number=number, item_id=output.id, output_index=index, delta=text, logprobs=told)
        return before + self._bytes(more)

    def _argue(self, arguments: str) -> bytes:
        output, index = self._outputs[-1], len(self._outputs) - 1
        output.pieces.append(arguments)
        number = self._number()
        return self._bytes(
            ArgumentsMore(sequence_number=number, item_id=output.id, output_index=index, delta=arguments)
        )

    def _open(self, output: Output) -> bytes:
        index = len(self._outputs)
        self._outputs.append(output)
        added = ItemAdded(sequence_number=self._number(), output_index=index, item=output.beginning())
        if output.call is not None:
            return self._bytes(added)
        part = PartAdded(sequence_number=self._number(), item_id=output.id, output_index=index, part=output.part)
        return self._bytes(added, part)

    def _close(self, *, is_cut: bool = False) -> bytes:
        """The end of the item that grows, if one does."""
        if len(self._outputs) == len(self._done):
            return b""
        output, index = self._outputs[-1], len(self._outputs) - 1
        item = output.item("incomplete" if is_cut else "completed", is_sealed=self._heading.is_sealed)
        self._done.append(item)
        written = self._close_content(output, index)
        return written + self._bytes(ItemDone(sequence_number=self._number(), output_index=index, item=item))

    def _close_content(self, output: Output, index: int) -> bytes:
        number, text = self._number(), output.text
        if output.call is not None:
            name = output.call.name
            return self._bytes(
                ArgumentsDone(sequence_number=number, item_id=output.id, output_index=index, name=name, arguments=text)
            )
        part = output.part
        if isinstance(part, ReasoningText):
            done: StreamEvent = ThoughtDone(sequence_number=number, item_id=output.id, output_index=index, text=text)
        else:
            done = TextDone(
                sequence_number=number, item_id=output.id, output_index=index, text=text, logprobs=part.logprobs
            )
        over = PartDone(sequence_number=self._number(), item_id=output.id, output_index=index, part=part)
        return self._bytes(done, over)

    def _finish(self, usage: Usage) -> bytes:
        before = self._close(is_cut=self._is_cut)
        self.response = msgspec.structs.replace(
            self.response,
            status="incomplete" if self._is_cut else "completed",
            completed_at=None if self._is_cut else self._heading.clock(),
            incomplete_details=IncompleteDetails("max_output_tokens") if self._is_cut else None,
            output=tuple(self._done),
            usage=ResponseUsage.of(usage, self._num_thought),
        )
        ending = Incomplete if self._is_cut else Completed
        return before + self._bytes(ending(sequence_number=self._number(), response=self.response))

    def _suffix(self) -> str:
        """What the id of the next item ends with."""
        return f"{self.response.id.removeprefix('resp_')}{len(self._outputs):04}"

    def _number(self) -> int:
        self._num_events += 1
        return self._num_events - 1

    def _bytes(self, *events: StreamEvent) -> bytes:
        return b"".join(sse.event(str(event.__struct_config__.tag), self._encode(event)) for event in events)


def response(heading: Heading, events: Iterable[Event]) -> bytes:
    """The whole answer out of all events of a request."""
    writer = EventWriter(heading)
    for event in events:
        writer.write(event)
    return msgspec.json.encode(writer.response)
