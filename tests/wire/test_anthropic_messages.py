import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxm.errors import InvalidRequest, UnsupportedParameter
from mlxm.types import (
    ChatRequest,
    ChoiceEnded,
    Ended,
    Event,
    Grammar,
    Message,
    Part,
    ReasoningDelta,
    ReasoningPart,
    Started,
    TextDelta,
    TextPart,
    Thinking,
    ToolCallDelta,
    ToolCallPart,
    ToolCallStarted,
    ToolChoice,
    Usage,
)
from mlxm.wire.anthropic_messages import read_count_tokens, read_messages
from mlxm.wire.anthropic_messages_answers import EventWriter, Heading, message
from mlxm.wire.sealed import read_reasoning, seal, sign
from tests.wire.stories import STORIES

GOLDEN = Path(__file__).parent / "golden" / "anthropic"
WRITES_GOLDEN = os.environ.get("MLXM_WRITE_GOLDEN") == "1"
HEADING = Heading(id="msg_0123456789ab", model="mlxm/tiny")
TOOL: dict[str, Any] = {"name": "find", "input_schema": {"type": "object"}}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}
RESULT = {"type": "tool_result", "tool_use_id": "c", "content": [IMAGE]}


def body(**fields: Any) -> bytes:
    """A small request."""
    return json.dumps(
        {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}], **fields}
    ).encode()


def chat(**fields: Any) -> ChatRequest:
    """A small request in neutral form."""
    return read_messages(body(**fields)).request.to_chat("req_1").chat


def turns(*blocks: Any, role: str = "user") -> list[Any]:
    """A conversation of one turn."""
    return [{"role": role, "content": list(blocks)}]


def stream(events: list[Event], heading: Heading = HEADING) -> bytes:
    """The bytes of a whole stream."""
    writer = EventWriter(heading)
    return b"".join(map(writer.write, events))


def check_golden(name: str, got: bytes) -> None:
    """Compare with the file; MLXM_WRITE_GOLDEN=1 writes it anew, for a person to read the difference."""
    if WRITES_GOLDEN:
        (GOLDEN / name).write_bytes(got)
    assert got == (GOLDEN / name).read_bytes()


@pytest.mark.parametrize("story", STORIES)
def test_whole_answer_is_as_ever(story: str) -> None:
    """The bytes of a whole answer are a contract."""
    check_golden(f"{story}.json", msgspec.json.format(message(HEADING, STORIES[story])) + b"\n")


@pytest.mark.parametrize("story", STORIES)
def test_stream_is_as_ever(story: str) -> None:
    """The bytes of a stream are a contract."""
    check_golden(f"{story}.sse", stream(STORIES[story]))


def test_omitted_thoughts_are_sealed() -> None:
    """In a stream as in a whole answer, and without a word of them."""
    heading = Heading(id="msg_1", model="m", shows_thinking=False)
    assert b"thinking_delta" not in stream(STORIES["calls"], heading)
    sealed = json.loads(message(heading, STORIES["calls"]))["content"][0]
    assert sealed == {"type": "thinking", "thinking": "", "signature": seal("Let me look.")}
    assert seal("Let me look.").encode() in stream(STORIES["calls"], heading)


def test_a_makers_signature_is_handed_on() -> None:
    """It wants it back."""
    events: list[Event] = [ReasoningDelta(0, "Hm."), ReasoningDelta(0, "", signature="theirs"), TextDelta(0, "a")]
    content = json.loads(message(HEADING, events))["content"]
    assert [block.get("signature") for block in content] == ["theirs", None]
    assert read_reasoning("Hm.", "theirs") == ReasoningPart("Hm.", "theirs")


@pytest.mark.parametrize(
    ("text", "signature", "found"),
    [
        ("a", sign("a"), ReasoningPart("a")),
        ("", seal("ä\ud800"), ReasoningPart("ä\ud800")),
        ("", "mlxm1s.%%%", None),
        ("", "mlxm1s.gICA", None),
        ("", "theirs", None),
        ("", None, None),
    ],
)
def test_signatures_are_read(text: str, signature: str | None, found: ReasoningPart | None) -> None:
    """Ours say what was thought; what is broken or foreign and empty says nothing."""
    assert read_reasoning(text, signature) == found


PARTS = st.lists(
    st.one_of(
        st.builds(TextPart, st.text(min_size=1)),
        st.builds(ReasoningPart, st.text(min_size=1)),
        st.builds(
            ToolCallPart,
            id=st.text("abc", min_size=1, max_size=9),
            name=st.sampled_from(["find", "stop"]),
            arguments=st.dictionaries(st.text(), st.integers() | st.text()).map(json.dumps),
        ),
    ),
    min_size=1,
)


def events_of(parts: list[Part]) -> list[Event]:
    """An answer of these parts, each cut in two."""
    events: list[Event] = [Started(1)]
    num_calls = 0
    for part in parts:
        match part:
            case TextPart(text):
                events += [TextDelta(0, text[:1]), TextDelta(0, text[1:])]
            case ReasoningPart(text):
                events += [ReasoningDelta(0, text[:1]), ReasoningDelta(0, text[1:])]
            case ToolCallPart():
                events.append(ToolCallStarted(choice=0, index=num_calls, id=part.id, name=part.name))
                cut = len(part.arguments) // 2
                events += [ToolCallDelta(0, num_calls, each) for each in (part.arguments[:cut], part.arguments[cut:])]
                num_calls += 1
    return [*events, ChoiceEnded(0, "stop"), Ended(Usage())]


def joined(parts: list[Part]) -> list[Part]:
    """Parts of the same kind in a row are one."""
    found: list[Part] = []
    for part in parts:
        last = found[-1] if found else None
        if isinstance(part, TextPart | ReasoningPart) and type(part) is type(last):
            found[-1] = type(part)(last.text + part.text)  # type: ignore[union-attr]
        else:
            found.append(part)
    return found


@given(PARTS)
def test_answers_come_back_as_they_were(parts: list[Part]) -> None:
    """What the assistant said is what it reads in the next request, word for word."""
    content = json.loads(message(HEADING, events_of(parts)))["content"]
    person = {"role": "user", "content": "x"}
    asked = chat(messages=[person, *turns(*content, role="assistant"), person])
    assert list(asked.messages[1].content) == joined(parts)


def test_every_part_of_a_request_arrives() -> None:
    """In its neutral form."""
    asked = chat(
        system=[{"type": "text", "text": "a"}, {"type": "text", "text": "b", "cache_control": {"type": "ephemeral"}}],
        messages=[
            {"role": "user", "content": "q"},
            *turns({"type": "thinking", "thinking": "t", "signature": "s"}, role="assistant"),
            {"role": "assistant", "content": "one"},
            *turns({"type": "tool_use", "id": "c", "name": "find", "input": {"a": 1}}, role="assistant"),
            *turns(
                {"type": "tool_result", "tool_use_id": "c", "content": "r", "is_error": True},
                {"type": "tool_result", "tool_use_id": "d"},
                {"type": "text", "text": "go"},
                {"type": "text", "text": " on"},
            ),
            {"role": "user", "content": "now"},
            {"role": "system", "content": "later"},
        ],
        stop_sequences=["END"],
        temperature=1,
        top_p=0.5,
        top_k=7,
        output_config={"effort": "max", "format": {"type": "json_schema", "schema": {"type": "object"}}},
    )
    call = ToolCallPart(id="c", name="find", arguments='{"a": 1}')
    assert asked.messages == (
        Message(role="system", content=(TextPart("a"), TextPart("b"))),
        Message(role="user", content=(TextPart("q"),)),
        Message(role="assistant", content=(ReasoningPart("t", "s"), TextPart("one"), call)),
        Message(role="tool", content=(TextPart("r"),), tool_call_id="c", is_error=True),
        Message(role="tool", content=(), tool_call_id="d"),
        Message(role="user", content=(TextPart("go"), TextPart(" on"), TextPart("\n\n"), TextPart("now"))),
        Message(role="system", content=(TextPart("later"),)),
    )
    assert (asked.stop, asked.max_tokens, asked.thinking) == (("END",), 9, Thinking(effort="max"))
    assert (asked.sampling.temperature, asked.sampling.top_p, asked.sampling.top_k) == (1, 0.5, 7)
    assert asked.grammar == Grammar(kind="json_schema", source='{"type": "object"}')


def test_a_begun_answer_is_gone_on_with() -> None:
    """When the last turn is the assistant's."""
    assert chat(messages=[*turns({"type": "text", "text": "a"}, role="assistant")]).continues_final
    assert not chat().continues_final


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"type": "disabled"}, Thinking(is_on=False)),
        ({"type": "adaptive"}, Thinking(is_on=True)),
        ({"type": "enabled", "budget_tokens": 8}, Thinking(is_on=True, budget_tokens=8)),
        (None, Thinking()),
    ],
)
def test_thinking(given: Any, found: Thinking) -> None:
    """On, off, as it likes, or nothing said."""
    assert chat(thinking=given).thinking == found


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (None, ToolChoice()),
        ({"type": "auto"}, ToolChoice()),
        ({"type": "none"}, ToolChoice(mode="none")),
        ({"type": "any"}, ToolChoice(mode="required")),
        (
            {"type": "tool", "name": "find", "disable_parallel_tool_use": True},
            ToolChoice(mode="named", name="find", allows_several=False),
        ),
    ],
)
def test_tool_choice(given: Any, found: ToolChoice) -> None:
    """Every way of it."""
    assert chat(tools=[TOOL], tool_choice=given).tool_choice == found


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": 1.1}, "temperature"),
        ({"messages": []}, "messages"),
        ({"messages": turns()}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": turns({"type": "text", "text": "x", "y": 1})}, "messages[0].content[0]"),
        ({"messages": turns({"type": "thinking", "thinking": "x"})}, "messages[0].content[0]"),
        ({"messages": turns({"type": "server_tool_use"})}, "messages[0].content[0].type"),
        ({"messages": turns({"type": "tool_use", "id": "c", "name": "f", "input": 1}, role="assistant")},
         "messages[0].content[0].input"),
        ({"messages": turns({"type": "tool_use", "id": "c", "name": "f", "input": {}}, role="assistant")},
         "messages[0]"),
        ({"tools": [{"name": "f"}]}, "tools[0]"),
        ({"tools": [{**TOOL, "input_schema": 1}]}, "tools[0].input_schema"),
        ({"tools": [1]}, "tools[0]"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice"),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}}, "thinking.budget_tokens"),
        ({"output_format": {"type": "json_schema", "schema": 1}}, "output_format.schema"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(fields: dict[str, Any], param: str) -> None:
    """By its place."""
    with pytest.raises(InvalidRequest) as caught:
        chat(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": turns({"type": "text", "text": "x"}, IMAGE)}, "messages[0].content[1]"),
        ({"messages": turns({"type": "document"})}, "messages[0].content[0]"),
        ({"messages": turns(RESULT)}, "messages[0].content[0].content[0]"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type"),
        ({"mcp_servers": [{}]}, "mcp_servers"),
        ({"container": "c"}, "container"),
        ({"frequency_penalty": 1}, "frequency_penalty"),
    ],
)
def test_what_cannot_be_done_is_refused(fields: dict[str, Any], param: str) -> None:
    """By its name."""
    with pytest.raises(UnsupportedParameter) as caught:
        chat(**fields)
    assert caught.value.param == param


def test_max_tokens_is_needed_for_an_answer_alone() -> None:
    """To count, nobody has to say how long it may be."""
    bare = msgspec.json.encode({"model": "m", "messages": [{"role": "user", "content": "x"}]})
    with pytest.raises(InvalidRequest, match="max_tokens"):
        read_messages(bare)
    assert read_count_tokens(bare).request.to_chat("r").chat.max_tokens is None


def test_what_changes_nothing_is_named() -> None:
    """Nothing is dropped in silence."""
    cited = {"type": "text", "text": "a", "citations": [{"type": "page_location"}]}
    asked = read_messages(
        body(
            speed="fast",
            service_tier="auto",
            system=[{"type": "text", "text": "x-anthropic-billing-header: 1"}],
            messages=[
                *turns({"type": "redacted_thinking", "data": "x"}, cited, role="assistant"),
                *turns({"type": "thinking", "thinking": "", "signature": "theirs"}, role="assistant"),
                {"role": "user", "content": "x"},
            ],
            tools=[{**TOOL, "defer_loading": True}, {"type": "code_execution_20250522", "name": "c"}],
        )
    )
    assert asked.ignored == ("speed",)
    assert asked.request.to_chat("r").ignored == (
        "system[].x-anthropic-billing-header",
        "messages[].content[].redacted_thinking",
        "messages[].content[].citations",
        "messages[].content[].thinking",
        "tools[].defer_loading",
        "tools[1].code_execution_20250522",
    )


def say(make: Callable[[str], dict[str, Any]], note: str) -> tuple[Message, ...]:
    """The messages of a request whose head differs from call to call."""
    return chat(**make(note)).messages


def test_a_note_for_the_books_does_not_break_the_prefix() -> None:
    """Two calls that differ in it alone ask the very same."""

    def make(note: str) -> dict[str, Any]:
        return {"system": [{"type": "text", "text": f"x-anthropic-billing-header: {note}"}, TEXT]}

    assert say(make, "a1") == say(make, "b2")


TEXT = {"type": "text", "text": "You write code."}
