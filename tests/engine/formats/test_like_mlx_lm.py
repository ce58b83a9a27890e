"""Calls as the families' templates print them, read by our parsers and by those of mlx-lm."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.tool_parsers import (
    function_gemma,
    gemma4,
    glm47,
    json_tools,
    kimi_k2,
    longcat,
    minicpm5,
    minimax_m2,
    mistral,
    muse_spark,
    pythonic,
    qwen3_coder,
)

from mlxm.engine.formats.families import Family
from mlxm.engine.formats.parser import open_parser
from mlxm.types import Tool, ToolCallDelta, ToolCallStarted

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "count": {"type": "integer"},
        "ratio": {"type": "number"},
        "flag": {"type": "boolean"},
        "rows": {"type": "array"},
        "more": {"type": "object"},
    },
}
TOOL = Tool(name="do_it", parameters=json.dumps(SCHEMA))
OPENAI_TOOL = {"type": "function", "function": {"name": "do_it", "parameters": SCHEMA}}
WORDS = st.text(st.characters(min_codepoint=32, exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1, max_size=12)
PLAIN = WORDS.filter(
    lambda text: text.strip() == text and not text.startswith(("<", "{", "[")) and text.lower() != "null"
)
LEAVES = st.one_of(st.integers(-999, 999), st.booleans(), st.none(), WORDS)
NESTED = st.recursive(
    LEAVES, lambda one: st.lists(one, max_size=3) | st.dictionaries(WORDS, one, max_size=3), max_leaves=5
)


FLAT = ("text", "count", "ratio", "flag")


def arguments_of(text: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, Any]]:
    """Arguments of the tool, any of which may be missing."""
    return st.fixed_dictionaries(
        {},
        optional={
            "text": text,
            "count": st.integers(-999, 999),
            "ratio": st.sampled_from([0.5, -2.25, 1e20]),
            "flag": st.booleans(),
            "rows": st.lists(NESTED, max_size=3),
            "more": st.dictionaries(WORDS, NESTED, max_size=3),
        },
    )


def dumps(value: object) -> str:
    """JSON as templates print it."""
    return json.dumps(value, ensure_ascii=False)


def as_text(value: object) -> str:
    """A string as it is, anything else as JSON."""
    return value if isinstance(value, str) else dumps(value)


class Layout(NamedTuple):
    """A format, how a call is printed between its tags, and who else reads what is between them."""

    tools: str
    tags: tuple[str, str]
    body: Callable[[dict[str, Any]], str]
    oracle: Callable[[str, Any], Any]
    text: st.SearchStrategy[str] = WORDS
    keys: tuple[str, ...] = ("text", "count", "ratio", "flag", "rows", "more")
    reads_empty: bool = True
    """Whether mlx-lm reads calls without arguments."""


def qwen_body(arguments: dict[str, Any]) -> str:
    """Tags on lines of their own."""
    parts = "".join(f"<parameter={key}>\n{as_text(value)}\n</parameter>\n" for key, value in arguments.items())
    return f"\n<function=do_it>\n{parts}</function>\n"


def glm_body(prefix: str) -> Callable[[dict[str, Any]], str]:
    """Keys and values on lines of their own."""

    def body(arguments: dict[str, Any]) -> str:
        key_tag, value_tag = f"{prefix}arg_key", f"{prefix}arg_value"
        return "do_it\n" + "".join(
            f"<{key_tag}>{key}</{key_tag}>\n<{value_tag}>{as_text(value)}</{value_tag}>\n"
            for key, value in arguments.items()
        )

    return body


def minimax_body(arguments: dict[str, Any]) -> str:
    """Names in quotes."""
    parts = "".join(f'<parameter name="{key}">{as_text(value)}</parameter>\n' for key, value in arguments.items())
    return f'\n<invoke name="do_it">\n{parts}</invoke>\n'


def minicpm_body(arguments: dict[str, Any]) -> str:
    """No section, and other tags."""
    parts = "".join(f'<param name="{key}">{as_text(value)}</param>' for key, value in arguments.items())
    return f'<function name="do_it">{parts}</function>'


def atem_body(arguments: dict[str, Any]) -> str:
    """Tags with a namespace."""
    parts = "".join(
        f'<atem:parameter name="{key}">{as_text(value)}</atem:parameter>' for key, value in arguments.items()
    )
    return f'<atem:invoke name="do_it">{parts}</atem:invoke>'


def gemma_value(value: object) -> str:
    """Strings between markers, keys bare."""
    match value:
        case str():
            return f'<|"|>{value}<|"|>'
        case dict():
            return "{" + ",".join(f"{key}:{gemma_value(one)}" for key, one in value.items()) + "}"
        case list():
            return "[" + ",".join(map(gemma_value, value)) + "]"
        case _:
            return dumps(value)


def gemma_body(arguments: dict[str, Any]) -> str:
    """Without the nested objects, whose keys are words that a bare key cannot be."""
    return "call:do_it" + gemma_value(arguments)


def function_gemma_body(arguments: dict[str, Any]) -> str:
    """Strings between other markers."""
    return gemma_body(arguments).replace('<|"|>', "<escape>")


def python_body(arguments: dict[str, Any]) -> str:
    """Strings as JSON writes them, which Python reads alike."""
    return "[do_it(" + ", ".join(f"{key}={dumps(value)}" for key, value in arguments.items()) + ")]"


LAYOUTS = {
    "json-tags": Layout(
        "json-tags",
        ("<tool_call>", "</tool_call>"),
        lambda arguments: f'\n{{"name": "do_it", "arguments": {dumps(arguments)}}}\n',
        json_tools.parse_tool_call,
    ),
    "qwen-xml": Layout("qwen-xml", ("<tool_call>", "</tool_call>"), qwen_body, qwen3_coder.parse_tool_call, PLAIN),
    "glm-xml": Layout("glm-xml", ("<tool_call>", "</tool_call>"), glm_body(""), glm47.parse_tool_call, PLAIN),
    "longcat-xml": Layout(
        "longcat-xml",
        ("<longcat_tool_call>", "</longcat_tool_call>"),
        glm_body("longcat_"),
        longcat.parse_tool_call,
        PLAIN,
        reads_empty=False,
    ),
    "mistral-list": Layout(
        "mistral-list",
        ("[TOOL_CALLS]", ""),
        lambda arguments: dumps([{"name": "do_it", "arguments": arguments}]),
        mistral.parse_tool_call,
    ),
    "mistral-args": Layout(
        "mistral-args", ("[TOOL_CALLS]", ""), lambda one: f"do_it[ARGS]{dumps(one)}", mistral.parse_tool_call
    ),
    "kimi": Layout(
        "kimi",
        ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
        lambda one: f"<|tool_call_begin|>functions.do_it:3<|tool_call_argument_begin|>{dumps(one)}<|tool_call_end|>",
        kimi_k2.parse_tool_call,
    ),
    "minimax-xml": Layout(
        "minimax-xml",
        ("<minimax:tool_call>", "</minimax:tool_call>"),
        minimax_body,
        minimax_m2.parse_tool_call,
        PLAIN,
    ),
    "minicpm-xml": Layout("minicpm-xml", ("", ""), minicpm_body, minicpm5.parse_tool_call, PLAIN),
    "atem-xml": Layout(
        "atem-xml",
        ("<atem:function_calls>", "</atem:function_calls>"),
        atem_body,
        muse_spark.parse_tool_call,
        PLAIN.filter(lambda text: text.isalpha() and text not in {"Infinity", "NaN", "true", "false"}),
    ),
    "gemma-calls": Layout(
        "gemma-calls", ("<|tool_call>", "<tool_call|>"), gemma_body, gemma4.parse_tool_call, PLAIN, keys=FLAT
    ),
    "function-gemma": Layout(
        "function-gemma",
        ("<start_function_call>", "<end_function_call>"),
        function_gemma_body,
        function_gemma.parse_tool_call,
        PLAIN.filter(str.isalnum),
        keys=FLAT,
    ),
    "python-tags": Layout(
        "python-tags", ("<|tool_call_start|>", "<|tool_call_end|>"), python_body, pythonic.parse_tool_call
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_call_is_read_as_it_was_meant_and_as_mlx_lm_reads_it(name: str, data: st.DataObject) -> None:
    """The arguments that the template printed come back with their types."""
    layout = LAYOUTS[name]
    drawn = data.draw(arguments_of(layout.text))
    arguments = {key: value for key, value in drawn.items() if key in layout.keys}
    body = layout.body(arguments)
    parser = open_parser(Family(name="x", title="x", tools=(layout.tools,)), tools=(TOOL,))
    events = [*parser.feed(layout.tags[0] + body + layout.tags[1]), *parser.finish()]
    (started,) = (event for event in events if isinstance(event, ToolCallStarted))
    read = json.loads("".join(event.arguments for event in events if isinstance(event, ToolCallDelta)))
    assert started.name == "do_it"
    assert read == arguments
    if not arguments and not layout.reads_empty:
        return
    theirs = layout.oracle(body, [OPENAI_TOOL])
    call = theirs[0] if isinstance(theirs, list) else theirs
    assert call["name"] == started.name
    assert call["arguments"] == read
    assert call.get("id") in {None, started.id}
