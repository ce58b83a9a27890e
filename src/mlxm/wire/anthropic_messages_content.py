"""The turns of Anthropic's messages: text, thoughts, calls of tools and their results, told apart by role.

What changes from call to call at the head of a coding client's prompt is a note for a cloud's books. It is taken out,
and named: it says nothing to a model, and in front of everything else no cached prefix would ever fit again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct, field

from mlxm.errors import InvalidRequest, UnsupportedParameter
from mlxm.types import Message, Part, TextPart, ToolCallPart
from mlxm.wire.fields import read_object
from mlxm.wire.kinds import MAX_TEXT_LENGTH, CallId, FunctionName, Json, Text, is_given
from mlxm.wire.sealed import read_reasoning

MAX_ARGUMENTS_DEPTH: Final = 128
BILLING_NOTE: Final = "x-anthropic-billing-header"
_BETWEEN_TURNS: Final = TextPart("\n\n")


class TextBlock(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="text"):
    """A text. Every prefix is cached here, so that a mark for caching asks for what happens anyway."""

    text: Text
    cache_control: Json = field(default_factory=Json)
    citations: Json = field(default_factory=Json)


class ThinkingBlock(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="thinking"):
    """What the assistant thought."""

    thinking: Text
    signature: Text | None = None


class RedactedThinkingBlock(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="redacted_thinking"
):
    """A thought that only its maker can read."""

    data: Text


class ToolUseBlock(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="tool_use"):
    """A call that the assistant made."""

    id: CallId
    name: FunctionName
    input: Json
    cache_control: Json = field(default_factory=Json)
    caller: Json = field(default_factory=Json)


class ImageBlock(Struct, frozen=True, tag_field="type", tag="image"):
    """A picture, which no model here is shown yet."""


class DocumentBlock(Struct, frozen=True, tag_field="type", tag="document"):
    """A file, which no model here reads."""


class SearchResultBlock(Struct, frozen=True, tag_field="type", tag="search_result"):
    """What a search found, to be cited; no model here cites."""


ResultBlock = TextBlock | ImageBlock | DocumentBlock | SearchResultBlock


class ToolResultBlock(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="tool_result"
):
    """What came of a call."""

    tool_use_id: CallId
    content: Text | Annotated[tuple[ResultBlock, ...], Meta(max_length=10_000)] | None = None
    is_error: bool | None = None
    cache_control: Json = field(default_factory=Json)


Block = (
    TextBlock
    | ThinkingBlock
    | RedactedThinkingBlock
    | ToolUseBlock
    | ToolResultBlock
    | ImageBlock
    | DocumentBlock
    | SearchResultBlock
)


class Turn(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One turn; those of the system stand where they are said."""

    role: Literal["user", "assistant", "system"]
    content: Text | Annotated[tuple[Block, ...], Meta(max_length=100_000)]


System = Text | Annotated[tuple[TextBlock, ...], Meta(max_length=10_000)]


class Conversation(Struct, frozen=True):
    """The neutral messages, and what was in the turns that changes nothing."""

    messages: tuple[Message, ...]
    ignored: tuple[str, ...]


def read_conversation(system: System | None, turns: Sequence[Turn]) -> Conversation:
    """The neutral form; InvalidRequest and UnsupportedParameter name what cannot be served."""
    reader = _Reader()
    reader.read_system(system)
    for index, turn in enumerate(turns):
        reader.read_turn(turn, f"messages[{index}]")
    return Conversation(tuple(reader.messages), tuple(reader.ignored))


class _Reader:
    """Gathers neutral messages turn by turn; a person's or the assistant's turns in a row are one turn."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.ignored: dict[str, None] = {}

    def read_system(self, system: System | None) -> None:
        blocks = (TextBlock(text=system),) if isinstance(system, str) else system
        texts = () if blocks is None else tuple(map(self._text, filter(self._is_for_the_model, blocks)))
        if texts:
            self.messages.append(Message(role="system", content=texts))

    def read_turn(self, turn: Turn, place: str) -> None:
        blocks = (TextBlock(text=turn.content),) if isinstance(turn.content, str) else turn.content
        match turn.role:
            case "assistant":
                self._say("assistant", tuple(self._assistant_parts(blocks, place)))
            case "user":
                self._read_user(blocks, place)
            case "system":
                texts = tuple(self._text(_only_text(block, where)) for where, block in _placed(blocks, place))
                self.messages.append(Message(role="system", content=texts))

    def _is_for_the_model(self, block: TextBlock) -> bool:
        if block.text.startswith(f"{BILLING_NOTE}:"):
            self.ignored[f"system[].{BILLING_NOTE}"] = None
            return False
        return True

    def _text(self, block: TextBlock) -> TextPart:
        if is_given(block.citations) and bytes(block.citations) != b"[]":
            self.ignored["messages[].content[].citations"] = None
        return TextPart(block.text)

    def _read_user(self, blocks: Sequence[Block], place: str) -> None:
        for where, block in _placed(blocks, place):
            if isinstance(block, ToolResultBlock):
                self.messages.append(self._result(block, where))
            else:
                self._say("user", (self._text(_only_text(block, where)),), goes_on=where != f"{place}.content[0]")

    def _say(self, role: Literal["user", "assistant"], parts: tuple[Part, ...], *, goes_on: bool = False) -> None:
        last = self.messages[-1] if self.messages else None
        if last is None or last.role != role:
            self.messages.append(Message(role=role, content=parts))
            return
        between = () if goes_on or not _ends_with_text(last) or not _begins_with_text(parts) else (_BETWEEN_TURNS,)
        self.messages[-1] = Message(role=role, content=(*last.content, *between, *parts))

    def _assistant_parts(self, blocks: Sequence[Block], place: str) -> Iterator[Part]:
        for where, block in _placed(blocks, place):
            match block:
                case ThinkingBlock(thinking=text, signature=signature):
                    part = read_reasoning(text, signature)
                    if part is not None:
                        yield part
                    elif signature:
                        self.ignored["messages[].content[].thinking"] = None
                case RedactedThinkingBlock():
                    self.ignored["messages[].content[].redacted_thinking"] = None
                case ToolUseBlock():
                    yield _call(block, where)
                case _:
                    yield self._text(_only_text(block, where))

    def _result(self, block: ToolResultBlock, place: str) -> Message:
        content = (TextBlock(text=block.content),) if isinstance(block.content, str) else block.content
        placed = _placed(() if content is None else content, place)
        return Message(
            role="tool",
            content=tuple(self._text(_only_text(each, where)) for where, each in placed),
            tool_call_id=block.tool_use_id,
            is_error=bool(block.is_error),
        )


def _placed(blocks: Sequence[Block], place: str) -> Iterator[tuple[str, Block]]:
    return ((f"{place}.content[{index}]", block) for index, block in enumerate(blocks))


def _call(block: ToolUseBlock, place: str) -> ToolCallPart:
    arguments = read_object(block.input, f"{place}.input", max_bytes=MAX_TEXT_LENGTH, max_depth=MAX_ARGUMENTS_DEPTH)
    return ToolCallPart(id=block.id, name=block.name, arguments=arguments)


def _only_text(block: Block, place: str) -> TextBlock:
    """A block where only text may stand."""
    match block:
        case TextBlock():
            return block
        case ImageBlock() | DocumentBlock() | SearchResultBlock():
            kind = block.__struct_config__.tag
            raise UnsupportedParameter(
                f"Blocks of the type {kind} are not supported yet.", hint="Send text only.", param=place
            )
        case _:
            kind = block.__struct_config__.tag
            raise InvalidRequest(f"A block of the type {kind} cannot stand in a turn of this role.", param=place)


def _ends_with_text(message: Message) -> bool:
    return bool(message.content) and isinstance(message.content[-1], TextPart)


def _begins_with_text(parts: tuple[Part, ...]) -> bool:
    return bool(parts) and isinstance(parts[0], TextPart)
