"""The items of OpenAI's responses: messages, thoughts, calls and their results, each on its own in one flat list.

What the assistant thought, said and called in a row is one turn of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct, field

from mlxm.errors import InvalidRequest, UnsupportedParameter
from mlxm.types import Message, Part, TextPart, ToolCallPart
from mlxm.wire.kinds import MAX_ITEMS, CallId, FunctionName, Json, Name, Text
from mlxm.wire.sealed import read_reasoning
from mlxm.wire.tagged import decode_at, shown_type, type_of

# What tools of a cloud leave behind in a conversation; no model here can do anything with it.
HOSTED: Final = frozenset(
    {
        "code_interpreter_call",
        "file_search_call",
        "image_generation_call",
        "mcp_list_tools",
        "tool_search_call",
        "tool_search_output",
        "web_search_call",
    }
)
_ID_STARTS: Final = {"function_call": "fc", "function_call_output": "fco", "message": "msg", "reasoning": "rs"}

ItemId = Annotated[str, Meta(max_length=256)]
Status = Literal["in_progress", "completed", "incomplete"]


class InputText(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="input_text"):
    """What was said to the assistant."""

    text: Text
    prompt_cache_breakpoint: Json = field(default_factory=Json)


class OutputText(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="output_text"):
    """What the assistant said; what stands beside the text is about it and not part of it."""

    text: Text
    annotations: Json = field(default_factory=Json)
    logprobs: Json = field(default_factory=Json)
    parsed: Json = field(default_factory=Json)


class PlainText(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="text"):
    """A text, whoever said it."""

    text: Text


class Refusal(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="refusal"):
    """What the assistant said instead of an answer."""

    refusal: Text


class InputImage(Struct, frozen=True, tag_field="type", tag="input_image"):
    """A picture, which no model here is shown yet."""


class InputFile(Struct, frozen=True, tag_field="type", tag="input_file"):
    """A file, which no model here reads."""


class InputAudio(Struct, frozen=True, tag_field="type", tag="input_audio"):
    """A sound, which no model here hears."""


Content = InputText | OutputText | PlainText | Refusal | InputImage | InputFile | InputAudio
Contents = Annotated[tuple[Content, ...], Meta(max_length=10_000)]


class MessageItem(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Something that was said."""

    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: Text | Contents
    id: ItemId | None = None
    status: Status | None = None
    phase: Name | None = None


class ReasoningText(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="reasoning_text"
):
    """What the assistant thought."""

    text: Text


class SummaryText(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="summary_text"):
    """What its thoughts came to."""

    text: Text


class ReasoningItem(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Thoughts of the assistant; the sealed ones are opened when they were sealed here."""

    type: Literal["reasoning"]
    id: ItemId | None = None
    summary: Annotated[tuple[SummaryText, ...], Meta(max_length=10_000)] | None = None
    content: Annotated[tuple[ReasoningText, ...], Meta(max_length=10_000)] | None = None
    encrypted_content: Text | None = None
    status: Status | None = None

    def text(self) -> str:
        """All that can be read of them."""
        parts = self.content or self.summary or ()
        return "".join(part.text for part in parts)


class FunctionCallItem(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A call that the assistant made."""

    type: Literal["function_call"]
    call_id: CallId
    name: FunctionName
    arguments: Text
    id: ItemId | None = None
    status: Status | None = None
    parsed_arguments: Json = field(default_factory=Json)


class FunctionOutputItem(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What came of a call."""

    type: Literal["function_call_output"]
    call_id: CallId
    output: Text | Contents
    id: ItemId | None = None
    status: Status | None = None


Items = Annotated[tuple[Json, ...], Meta(max_length=MAX_ITEMS)]


class Conversation(Struct, frozen=True):
    """The neutral messages, and the items that change nothing."""

    messages: tuple[Message, ...]
    ignored: tuple[str, ...]


def read_items(items: Sequence[Json]) -> Conversation:
    """The neutral form; InvalidRequest and UnsupportedParameter name what cannot be served."""
    messages: list[Message] = []
    ignored: dict[str, None] = {}
    for index, item in enumerate(items):
        place = f"input[{index}]"
        match type_of(item, place):
            case None | "message":
                _add(messages, _message(decode_at(item, MessageItem, place), place))
            case "reasoning":
                if (thought := _thought(decode_at(item, ReasoningItem, place))) is None:
                    ignored["input[].reasoning"] = None
                else:
                    _add(messages, thought)
            case "function_call":
                _add(messages, _call(decode_at(item, FunctionCallItem, place)))
            case "function_call_output":
                messages.append(_output(decode_at(item, FunctionOutputItem, place), place))
            case str(kind) if kind in HOSTED:
                ignored[f"input[].{kind}"] = None
            case str(kind):
                raise UnsupportedParameter(
                    f"Items of the type {shown_type(kind)} are not supported.", hint="Leave it out.", param=place
                )
    return Conversation(tuple(messages), tuple(ignored))


def _add(messages: list[Message], message: Message) -> None:
    if message.role == "assistant" and messages and messages[-1].role == "assistant":
        messages[-1] = Message(role="assistant", content=(*messages[-1].content, *message.content))
    else:
        messages.append(message)


def _message(item: MessageItem, place: str) -> Message:
    return Message(role=item.role, content=_texts(item.content, place))


def _thought(item: ReasoningItem) -> Message | None:
    part = read_reasoning(item.text(), item.encrypted_content)
    return None if part is None else Message(role="assistant", content=(part,))


def _call(item: FunctionCallItem) -> Message:
    call = ToolCallPart(id=item.call_id, name=item.name, arguments=item.arguments)
    return Message(role="assistant", content=(call,))


def _output(item: FunctionOutputItem, place: str) -> Message:
    return Message(role="tool", content=_texts(item.output, place, "output"), tool_call_id=item.call_id)


def _texts(content: str | tuple[Content, ...], place: str, name: str = "content") -> tuple[Part, ...]:
    if isinstance(content, str):
        return (TextPart(content),)
    return tuple(_text(part, f"{place}.{name}[{index}]") for index, part in enumerate(content))


def _text(part: Content, place: str) -> TextPart:
    match part:
        case InputText(text=text) | OutputText(text=text) | PlainText(text=text) | Refusal(refusal=text):
            return TextPart(text)
        case InputImage() | InputFile() | InputAudio():
            kind = part.__struct_config__.tag
            raise UnsupportedParameter(
                f"Parts of the type {kind} are not supported yet.", hint="Send text only.", param=place
            )


# ── what is kept of them ─────────────────────────────────────────────────────────────────────────


class ItemPageAsked(Struct, frozen=True, kw_only=True):
    """Which of the items of a stored response are wanted."""

    limit: Annotated[int, Meta(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"
    after: ItemId | None = None

    def encode(self, items: Sequence[Json]) -> bytes:
        """The answer to a request for them; InvalidRequest for an item that is not among them."""
        found: list[dict[str, Any]] = [msgspec.json.decode(item) for item in items]
        if self.order == "desc":
            found.reverse()
        if self.after is not None:
            place = next((index for index, item in enumerate(found) if item["id"] == self.after), None)
            if place is None:
                raise InvalidRequest("after names no item of the response.", param="after")
            found = found[place + 1 :]
        page = found[: self.limit]
        ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
        return msgspec.json.encode({"object": "list", "data": page, **ends, "has_more": len(found) > len(page)})


def text_item(text: str) -> Json:
    """A request's plain text as the item that it stands for."""
    content = [{"type": "input_text", "text": text}]
    return Json(msgspec.json.encode({"type": "message", "role": "user", "content": content}))


def with_ids(items: Sequence[Json], suffix: str) -> tuple[Json, ...]:
    """Items to be kept: those without an id get one that ends like `suffix`."""
    return tuple(_with_id(msgspec.json.decode(item), f"{suffix}{index:04}") for index, item in enumerate(items))


def _with_id(item: dict[str, Any], suffix: str) -> Json:
    kind = "message" if item.get("type") is None else item["type"]
    item_id = item.get("id")
    known = item_id if item_id is not None else f"{_ID_STARTS.get(kind, 'item')}_{suffix}"
    return Json(msgspec.json.encode({**item, "type": kind, "id": known}))
