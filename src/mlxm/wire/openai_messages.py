"""The messages of OpenAI's chats: every role, and every part that a model here can read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from msgspec import Meta, Struct, field

from mlxm.errors import InvalidRequest, UnsupportedParameter
from mlxm.types import Message, Part, ReasoningPart, Role, TextPart, ToolCallPart
from mlxm.wire.kinds import CallId, FunctionName, Index, Json, Name, Text, is_given

# What clients send back when they put an answer into the next request as they got it.
MESSAGE_NO_OPS: dict[str, tuple[Any, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "reasoning_details": ([],),
    "refusal": ("",),
}


class TextContent(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="text"):
    """A text part; marks for caches in the cloud are taken from clients that set them, and change nothing."""

    text: Text
    cache_control: Json = field(default_factory=Json)
    prompt_cache_breakpoint: Json = field(default_factory=Json)

    def marks(self) -> tuple[tuple[str, Json], ...]:
        """What changes nothing here, by name."""
        return (("cache_control", self.cache_control), ("prompt_cache_breakpoint", self.prompt_cache_breakpoint))


class RefusalContent(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="refusal"):
    """What the assistant said instead of an answer."""

    refusal: Text


class ImageContent(Struct, frozen=True, tag_field="type", tag="image_url"):
    """A picture, which no model here is shown yet."""


class AudioContent(Struct, frozen=True, tag_field="type", tag="input_audio"):
    """A sound, which no model here hears."""


class VideoContent(Struct, frozen=True, tag_field="type", tag="video_url"):
    """A film, which no model here is shown."""


class FileContent(Struct, frozen=True, tag_field="type", tag="file"):
    """A file, which no model here reads."""


Content = TextContent | RefusalContent | ImageContent | AudioContent | VideoContent | FileContent


class FunctionCall(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A function's name and its arguments, which are JSON as the assistant wrote it."""

    name: FunctionName
    arguments: Text


class ToolCall(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="function"):
    """A call that the assistant made; `index` is left over from a stream."""

    id: CallId
    function: FunctionCall
    index: Index | None = None


class ChatMessage(Struct, frozen=True, kw_only=True):
    """One turn."""

    role: Role
    content: Text | Annotated[tuple[Content, ...], Meta(min_length=1, max_length=10_000)] | None = None
    name: Name | None = None
    tool_call_id: CallId | None = None
    tool_calls: Annotated[tuple[ToolCall, ...], Meta(max_length=1024)] | None = None
    reasoning_content: Text | None = None
    reasoning: Text | None = None

    def to_message(self, place: str) -> Message:
        """The neutral form; `place` names it in errors."""
        self._check(place)
        return Message(
            role=self.role,
            content=tuple(self._parts(place)),
            name=self.name,
            tool_call_id=self.tool_call_id,
        )

    def _parts(self, place: str) -> Iterator[Part]:
        reasoning = self.reasoning if self.reasoning_content is None else self.reasoning_content
        if reasoning:
            yield ReasoningPart(reasoning)
        if isinstance(self.content, str):
            yield TextPart(self.content)
        elif self.content is not None:
            for index, part in enumerate(self.content):
                yield _text_part(part, f"{place}.content[{index}]")
        for call in self._calls:
            yield ToolCallPart(id=call.id, name=call.function.name, arguments=call.function.arguments)

    @property
    def _calls(self) -> tuple[ToolCall, ...]:
        return () if self.tool_calls is None else self.tool_calls

    def _check(self, place: str) -> None:
        """Refuse what a message of this role cannot have, or has to have."""
        is_assistant = self.role == "assistant"
        if not is_assistant and self._calls:
            raise InvalidRequest("Only the assistant calls tools.", param=f"{place}.tool_calls")
        if not is_assistant and (self.reasoning_content or self.reasoning):
            raise InvalidRequest("Only the assistant reasons.", param=f"{place}.reasoning_content")
        if self.role == "tool" and self.tool_call_id is None:
            raise InvalidRequest("A tool's result names the call that it is for.", param=f"{place}.tool_call_id")
        if self.role != "tool" and self.tool_call_id is not None:
            raise InvalidRequest("Only a tool's result has a tool_call_id.", param=f"{place}.tool_call_id")
        if self.content is None and not (is_assistant and self._calls):
            raise InvalidRequest("The message has no content.", param=f"{place}.content")


def ignored_marks(messages: tuple[ChatMessage, ...]) -> tuple[str, ...]:
    """The marks for caches elsewhere that any of the parts has."""
    parts = (
        part
        for message in messages
        if isinstance(message.content, tuple)
        for part in message.content
        if isinstance(part, TextContent)
    )
    marks = dict.fromkeys(mark for part in parts for mark, value in part.marks() if is_given(value))
    return tuple(f"messages[].content[].{mark}" for mark in marks)


def _text_part(part: Content, place: str) -> TextPart:
    match part:
        case TextContent(text=text) | RefusalContent(refusal=text):
            return TextPart(text)
        case ImageContent() | AudioContent() | VideoContent() | FileContent():
            kind = part.__struct_config__.tag
            raise UnsupportedParameter(
                f"Parts of the type {kind} are not supported yet.", hint="Send text only.", param=place
            )
