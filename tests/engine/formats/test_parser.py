from __future__ import annotations

import msgspec
import pytest

from mlxm.engine.formats.families import Family
from mlxm.engine.formats.parser import open_parser
from mlxm.engine.formats.schema import read_types, to_json
from mlxm.engine.formats.tools import REASONING
from mlxm.types import Event, ReasoningDelta, TextDelta, TokenLogprobs, Tool, ToolCallDelta, ToolCallStarted, ToolChoice
from tests.engine.formats.transcripts import BY_NAME, TOOLS

QWEN = BY_NAME["qwen3"]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {}}\n</tool_call>'


def texts(events: list[Event]) -> tuple[str, str]:
    """Content and thoughts."""
    content = "".join(event.text for event in events if isinstance(event, TextDelta))
    return content, "".join(event.text for event in events if isinstance(event, ReasoningDelta))


def test_tokens_go_with_the_first_text_that_comes_of_them() -> None:
    """Those of tags wait for the next text; logprobs go with their tokens."""
    parser = open_parser(QWEN, choice=2)
    chances = [TokenLogprobs(place, b"", -1.0) for place in range(5)]
    pieces = ("<think>", "\n", "Hm", "</think>\n\n", "Yes")
    events = [parser.feed(piece, (place,), (chances[place],)) for place, piece in enumerate(pieces)]
    assert events == [
        [],
        [],
        [ReasoningDelta(2, "Hm", (0, 1, 2), tuple(chances[:3]))],
        [],
        [TextDelta(2, "Yes", (3, 4), tuple(chances[3:]))],
    ]
    assert parser.finish() == []


def test_tokens_of_markup_at_the_end_go_with_an_empty_text() -> None:
    """So do those without any text of their own."""
    parser = open_parser(QWEN, tools=TOOLS)
    parser.feed(CALL, (7, 8))
    parser.feed("", (9,))
    assert parser.finish() == [TextDelta(0, "", (7, 8, 9))]
    assert parser.num_calls == 1


def test_calls_are_numbered_and_have_ids() -> None:
    """Two equal ones are two."""
    parser = open_parser(QWEN, tools=TOOLS, choice=1)
    events = parser.feed(CALL + CALL)
    started = [event for event in events if isinstance(event, ToolCallStarted)]
    assert [(one.choice, one.index, one.name) for one in started] == [(1, 0, "get_weather"), (1, 1, "get_weather")]
    assert all(one.id.startswith("call_") and len(one.id) == len("call_") + 24 for one in started)
    assert started[0].id != started[1].id
    assert [event for event in events if isinstance(event, ToolCallDelta)] == [
        ToolCallDelta(1, 0, "{}"),
        ToolCallDelta(1, 1, "{}"),
    ]


@pytest.mark.parametrize(
    ("tools", "choice"), [((), ToolChoice()), (TOOLS, ToolChoice(mode="none"))], ids=["no tools", "no calls"]
)
def test_markup_of_calls_is_content_when_there_are_none(tools: tuple[Tool, ...], choice: ToolChoice) -> None:
    """Nothing of it is held back or left out."""
    parser = open_parser(QWEN, tools=tools, tool_choice=choice)
    assert texts([*parser.feed(CALL), *parser.finish()]) == (CALL, "")


@pytest.mark.parametrize(
    ("begun", "ending", "rest", "meaning"),
    [
        ("The answer", "assistant\nThe answer", " is 4.", (" is 4.", "")),
        ("<think>\nHm", "assistant\n<think>\nHm", ".\n</think>\n\n4", ("4", ".")),
        ("Hm", "<think>\nHm", ".\n</think>\n\n4", ("4", ".")),
        ("<think>\nHm", "think>\nHm", ".\n</think>\n\n4", ("4", ".")),
        ("", "</think> <think>", "a</think>b", ("b", "a")),
        ("", "<think>\n</think>\n\n", "b", ("b", "")),
        ("", "Say <think> please.<|im_end|>", "b", ("b", "")),
    ],
)
def test_an_answer_that_the_request_has_begun_goes_on(
    begun: str, ending: str, rest: str, meaning: tuple[str, str]
) -> None:
    """Its beginning comes out no more, but counts for what follows."""
    parser = open_parser(QWEN, ending=ending, begun=begun)
    assert texts([*parser.feed(rest), *parser.finish()]) == meaning


def test_the_ending_of_another_layout_says_nothing() -> None:
    """An answer on channels begins anew where the prompt's ending has no header."""
    parser = open_parser(BY_NAME["gpt-oss"], ending="Hello?")
    assert texts([*parser.feed("<|channel|>final<|message|>Yes"), *parser.finish()]) == ("Yes", "")


def test_own_tags_for_thoughts() -> None:
    """A family may have any pair."""
    family = Family(name="x", title="x", reasoning=REASONING["reasoning"])
    parser = open_parser(family)
    assert texts([*parser.feed("<reasoning>a</think></reasoning>b"), *parser.finish()]) == ("b", "a</think>")
    family = msgspec.structs.replace(family, reasoning=REASONING["bracket-think"])
    parser = open_parser(family)
    assert texts([*parser.feed("[THINK]a\n[/THINK]\nb"), *parser.finish()]) == ("\nb", "a\n")


def test_what_is_held_too_long_is_text() -> None:
    """Nobody waits for ever for the end of what may be a call."""
    for rest in ("y", '"}, "name": "a"}</tool_call>'):
        text = '<tool_call>{"arguments": {"x": "' + "y" * 70_000 + rest
        for pieces in ([text], [text[:60_000], text[60_000:69_000], text[69_000:]]):
            parser = open_parser(BY_NAME["hermes"], tools=TOOLS)
            assert texts([*(event for piece in pieces for event in parser.feed(piece)), *parser.finish()]) == (text, "")
    parser = open_parser(BY_NAME["gpt-oss"], tools=TOOLS)
    text = "<|channel|>" + "final " * 100
    assert texts([*parser.feed(text), *parser.finish()]) == (text, "")


@pytest.mark.parametrize(
    ("schema", "types"),
    [
        ('{"type": "integer"}', {"integer"}),
        ('{"type": ["string", "null"]}', {"string", "null"}),
        (
            '{"enum": [1, 2.5, "a", true, null, [], {}]}',
            {"integer", "number", "string", "boolean", "null", "array", "object"},
        ),
        ('{"const": "a"}', {"string"}),
        (
            '{"anyOf": [{"type": "number"}, {"oneOf": [{"type": "null"}]}], "allOf": [{"type": "boolean"}]}',
            {"number", "null", "boolean"},
        ),
        ('{"$ref": "#/$defs/a"}', {"array"}),
        ('{"$ref": "#/$defs/b"}', set()),
        ('{"$ref": "#/$defs/missing/x"}', set()),
        ("true", set()),
        ('{"type": "odd", "enum": 3}', set()),
    ],
)
def test_types_are_found_wherever_a_schema_has_them(schema: str, types: set[str]) -> None:
    """References that lead nowhere, or to themselves, are of no type."""
    definitions = '"$defs": {"a": {"type": "array"}, "b": {"$ref": "#/$defs/b"}}'
    tool = Tool(name="a", parameters=f'{{"properties": {{"x": {schema}}}, {definitions}}}')
    assert read_types(tool) == {"x": types}


def test_schemas_of_no_object_say_nothing() -> None:
    """Whatever they are."""
    assert [read_types(Tool(name="a", parameters=one)) for one in (None, "[", "[]", "{}", '{"properties": 3}')] == [
        {}
    ] * 5


@pytest.mark.parametrize(
    ("text", "types", "value"),
    [
        ("12", {"integer"}, "12"),
        ("12.0", {"integer"}, "12.0"),
        ("1e999", {"integer"}, '"1e999"'),
        ("012", {"integer"}, '"012"'),
        ("-2.5e3", {"number"}, "-2.5e3"),
        (" true ", {"boolean"}, "true"),
        ("None", {"null", "string"}, "null"),
        ("null", {"string", "integer"}, '"null"'),
        ('{"a": [1]}', {"object"}, '{"a": [1]}'),
        ("{'a': None}", {"object"}, '{"a": null}'),
        ("[1, {2}]", {"array"}, '"[1, {2}]"'),
        ("['\\d']", {"array"}, '["\\\\d"]'),
        ("[" * 300 + "]" * 300, {"string"}, '"' + "[" * 300 + "]" * 300 + '"'),
        ("[" * 100_000, {"array"}, '"' + "[" * 100_000 + '"'),
        ('a\n"é', {"array"}, '"a\\n\\"é"'),
        ("[1]", set(), "[1]"),
    ],
)
def test_values_become_what_their_types_allow(text: str, types: set[str], value: str) -> None:
    """And strings when they are none of it."""
    assert to_json(text, frozenset(types)) == value  # type: ignore[arg-type]  # names of types


@pytest.mark.parametrize(
    ("written", "expected"),
    [(r"\ud83d\ude00", '{"city": "\N{GRINNING FACE}"}'), (r"\ud83d", None)],
    ids=["whole", "half"],
)
def test_characters_that_python_escapes_in_halves(written: str, expected: str | None) -> None:
    """They become whole ones; half a one makes the call plain text, because no JSON can say it."""
    parser = open_parser(BY_NAME["llama-3"], tools=(Tool(name="weather", parameters="{}"),))
    text = f'[weather(city="{written}")]'
    events = [*parser.feed(text), *parser.finish()]
    arguments = "".join(event.arguments for event in events if isinstance(event, ToolCallDelta))
    assert (arguments or None) == expected
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == ("" if expected else text)
