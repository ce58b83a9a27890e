import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given

from mlxm.errors import InvalidRequest, UnsupportedParameter
from mlxm.types import ChatRequest, Event, Grammar, Message, Part, TextPart, Thinking, ToolChoice
from mlxm.wire.openai_responses import read_request
from mlxm.wire.openai_responses_answers import Heading
from mlxm.wire.openai_responses_events import EventWriter, response
from mlxm.wire.openai_responses_items import read_items, with_ids
from tests.wire.stories import STORIES
from tests.wire.test_anthropic_messages import PARTS, events_of, joined

GOLDEN = Path(__file__).parent / "golden" / "openai_responses"
WRITES_GOLDEN = os.environ.get("MLXM_WRITE_GOLDEN") == "1"
TOOL: dict[str, Any] = {"type": "function", "name": "find", "parameters": {"type": "object"}}
NAMED = {"type": "function", "name": "find"}


def body(**fields: Any) -> bytes:
    """A small request."""
    return json.dumps({"model": "m", "input": "x", **fields}).encode()


def chat(**fields: Any) -> ChatRequest:
    """A small request in neutral form."""
    return read_request(body(**fields)).request.to_chat("req_1")


def heading(**fields: Any) -> Heading:
    """The head of the answer to a small request."""
    request = read_request(body(**fields)).request
    return Heading.of(request, "resp_0123456789ab", clock=lambda: 1_767_225_600, is_stored=False)


def stream(events: list[Event], **fields: Any) -> bytes:
    """The bytes of a whole stream."""
    writer = EventWriter(heading(**fields))
    return b"".join(map(writer.write, events))


def check_golden(name: str, got: bytes) -> None:
    """Compare with the file; MLXM_WRITE_GOLDEN=1 writes it anew, for a person to read the difference."""
    if WRITES_GOLDEN:
        (GOLDEN / name).write_bytes(got)
    assert got == (GOLDEN / name).read_bytes()


@pytest.mark.parametrize("story", STORIES)
def test_whole_answer_is_as_ever(story: str) -> None:
    """The bytes of a whole answer are a contract."""
    check_golden(f"{story}.json", msgspec.json.format(response(heading(), STORIES[story])) + b"\n")


@pytest.mark.parametrize("story", STORIES)
def test_stream_is_as_ever(story: str) -> None:
    """The bytes of a stream are a contract."""
    check_golden(f"{story}.sse", stream(STORIES[story]))


@pytest.mark.parametrize("story", STORIES)
def test_stream_ends_with_the_whole_answer(story: str) -> None:
    """Its last event holds what a client that does not stream gets; all are numbered without a gap."""
    lines = stream(STORIES[story]).decode().split("\n")
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["response"] == json.loads(response(heading(), STORIES[story]))


@given(PARTS)
def test_answers_come_back_as_they_were(parts: list[Part]) -> None:
    """What the assistant said is what it reads in the next request, word for word; sealed thoughts too."""
    output = json.loads(response(heading(include=["reasoning.encrypted_content"]), events_of(parts)))["output"]
    for item in output:
        if item["type"] == "reasoning":
            del item["content"]
    asked = chat(input=[*output, {"role": "user", "content": "x"}])
    assert list(asked.messages[0].content) == joined(parts)


def test_what_is_asked_is_repeated() -> None:
    """In the answer, as it was understood."""
    told = json.loads(
        response(
            heading(
                tools=[TOOL, {"type": "web_search"}],
                tool_choice=NAMED,
                parallel_tool_calls=False,
                reasoning={"effort": "low"},
                text={"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}},
                truncation="auto",
                user="u",
                top_p=0.5,
            ),
            STORIES["words"],
        )
    )
    assert told["tools"] == [{**TOOL, "description": None, "strict": False}]
    assert (told["tool_choice"], told["parallel_tool_calls"]) == (NAMED, False)
    assert told["text"]["format"]["schema"] == {"type": "object"}
    assert (told["reasoning"], told["truncation"]) == ({"effort": "low", "summary": None}, "auto")
    assert (told["user"], told["top_p"], told["temperature"]) == ("u", 0.5, 1.0)


def test_every_field_arrives() -> None:
    """In its neutral form."""
    asked = chat(
        instructions="s",
        input=[
            {"role": "developer", "content": "d"},
            {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "t"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
            {"type": "function_call_output", "call_id": "c", "output": "r"},
        ],
        max_output_tokens=7,
        temperature=2,
        top_p=0.5,
        presence_penalty=1,
        frequency_penalty=-1,
        include=["message.output_text.logprobs"],
        text={"format": {"type": "json_object"}},
        reasoning={"effort": "none"},
    )
    assert [message.role for message in asked.messages] == ["system", "developer", "user", "assistant", "tool"]
    assert asked.messages[2] == Message(role="user", content=(TextPart("a"), TextPart("b")))
    assert len(asked.messages[3].content) == 2
    assert (asked.max_tokens, asked.num_logprobs, asked.sampling.temperature) == (7, 0, 2)
    assert (asked.sampling.presence_penalty, asked.sampling.frequency_penalty) == (1, -1)
    assert asked.grammar == Grammar(kind="json_object", source="{}")
    assert asked.thinking == Thinking(is_on=False, effort="none")


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (None, ToolChoice()),
        ("auto", ToolChoice()),
        ("none", ToolChoice(mode="none")),
        ("required", ToolChoice(mode="required")),
        (NAMED, ToolChoice(mode="named", name="find")),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [NAMED, {"type": "web_search"}]},
            ToolChoice(mode="required"),
        ),
    ],
)
def test_tool_choice(given: Any, found: ToolChoice) -> None:
    """Every way of it."""
    assert chat(tools=[TOOL], tool_choice=given).tool_choice == found


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [1]}, "input[0]"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"type": "function_call", "call_id": "c"}]}, "input[0]"),
        ({"temperature": 3}, "temperature"),
        ({"tool_choice": "some"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": NAMED}, "tool_choice"),
        ({"tools": [{**TOOL, "parameters": 1}]}, "tools[0].parameters"),
        ({"tools": [{"type": "web_search"}, {"type": "function"}]}, "tools[1]"),
        ({"stream_options": {}}, "stream_options"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"include": ["everything"]}, "include[0]"),
        ({"text": {"format": {"type": "json_schema", "schema": 1}}}, "text.format.schema"),
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, Any], param: str) -> None:
    """By its place."""
    with pytest.raises(InvalidRequest) as caught:
        chat(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": [{"type": "input_file"}]}]},
         "input[0].output[0]"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"background": True}, "background"),
        ({"conversation": "c"}, "conversation"),
        ({"n": 2}, "n"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused(fields: dict[str, Any], param: str) -> None:
    """By its name."""
    with pytest.raises(UnsupportedParameter) as caught:
        chat(**fields)
    assert caught.value.param == param


def test_what_changes_nothing_is_named() -> None:
    """Nothing is dropped in silence."""
    asked = read_request(
        body(
            user="u",
            include=["web_search_call.results"],
            reasoning={"summary": "auto"},
            text={"verbosity": "high", "format": {"type": "json_schema", "schema": {}, "description": "d"}},
            tools=[{**TOOL, "defer_loading": True}, {"type": "mcp"}],
            input=[{"type": "reasoning", "encrypted_content": "theirs"}, {"role": "user", "content": "x"}],
        )
    )
    assert asked.ignored == (
        *("user", "include.web_search_call.results", "reasoning.summary", "text.verbosity"),
        *("text.format.description", "tools[].defer_loading", "tools[1].mcp", "input[].reasoning"),
    )


def test_kept_items_have_ids_and_are_read_again() -> None:
    """Those that came without one get one, and what they say stays."""
    items = (msgspec.Raw(b'{"role":"user","content":"x"}'), msgspec.Raw(b'{"type":"reasoning","id":"rs_1"}'))
    kept = with_ids(items, "ab")
    assert [json.loads(bytes(item))["id"] for item in kept] == ["msg_ab0000", "rs_1"]
    assert read_items(kept).messages == read_items(items).messages
