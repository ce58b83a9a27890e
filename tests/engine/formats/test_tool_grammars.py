from __future__ import annotations

import json
import random
from functools import cache
from typing import Any

import jsonschema
import pytest
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from mlxm.engine.formats.families import FAMILIES, GENERIC, Family
from mlxm.engine.formats.grammar import answer_grammar, tool_grammar
from mlxm.engine.formats.parser import open_parser
from mlxm.engine.grammar import source_of
from mlxm.types import Grammar, TextDelta, Tool, ToolCallDelta, ToolCallStarted, ToolChoice

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "unit": {"enum": ["C", "F"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "hours": {"type": "array", "items": {"$ref": "#/$defs/hour"}, "maxItems": 2},
        "city": {"type": "string", "maxLength": 3},
        "mode": {"const": "fast"},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"hour": {"type": "boolean"}},
}
WEATHER = Tool(name="get_weather", parameters=json.dumps(SCHEMA), is_strict=True)
NOW = Tool(name="now", parameters='{"type": "object", "properties": {}, "additionalProperties": false}')
OPTIONAL = Tool(
    name="opt",
    parameters='{"type": "object", "properties": {"a": {"type": "boolean"}, "b": {"type": "null"}}, '
    '"additionalProperties": false}',
)
TOOLS = (WEATHER, NOW, OPTIONAL)
FAMILY = pytest.mark.parametrize("family", [entry.family for entry in FAMILIES], ids=lambda family: family.name)
BY_NAME = {entry.family.name: entry.family for entry in FAMILIES} | {GENERIC.name: GENERIC}


FILLER = "ab\n</parameter></arg_value></think></response></seed:think><channel|><|end|></｜DSML｜parameter>".encode()


class Vocabulary:
    """A token for each byte and one for each marker; the last one ends answers."""

    eos_token_id = 256
    bos_token_id = None

    def __init__(self, markers: tuple[str, ...]) -> None:
        self.tokens = (*(bytes([byte]) for byte in range(256)), b"<end>", *(marker.encode() for marker in markers))
        self.special_token_ids = tuple(range(256, len(self.tokens)))

    def __call__(self, text: bytes) -> list[int]:
        """Bytes are tokens."""
        return list(text)


@cache
def tokenizer_of(markers: tuple[str, ...]) -> LLTokenizer:
    """What llguidance reads tokens by."""
    return LLTokenizer(TokenizerWrapper(Vocabulary(markers)))


class Walk:
    """A model that writes anything that a grammar allows; where that is any text, it writes what ends one."""

    def __init__(self, grammar: Grammar, markers: tuple[str, ...], *, seed: int) -> None:
        self.matcher = LLMatcher(tokenizer_of(markers), source_of(grammar), log_level=0)
        assert not self.matcher.is_error(), self.matcher.get_error()
        self._tokens = Vocabulary(markers).tokens
        self._random = random.Random(seed)
        self._place = 0

    def text(self) -> str:
        """The whole answer."""
        written = b""
        while not self.matcher.is_stopped():
            token = self._choose()
            if token == Vocabulary.eos_token_id:
                break
            assert self.matcher.consume_token(token)
            written += self._tokens[token]
            assert len(written) < 3000, written
        assert not self.matcher.is_error(), self.matcher.get_error()
        return written.decode()

    def _choose(self) -> int:
        mask = int.from_bytes(self.matcher.compute_bitmask(), "little")
        allowed = [token for token in range(len(self._tokens)) if mask >> token & 1]
        plain = [token for token in allowed if token < 0x80]
        special = [token for token in allowed if token >= 0x100]
        if len(plain) > 120 and (not special or self._random.random() < 0.8):
            return self._fill()
        if not plain and not special:
            return self._fill() if FILLER[self._place] in allowed else self._random.choice(allowed)
        return self._random.choice(special if len(plain) > 120 else plain + special)

    def _fill(self) -> int:
        byte = FILLER[self._place]
        self._place = (self._place + 1) % len(FILLER)
        return byte


def markers_of(family: Family) -> tuple[str, ...]:
    """Those that look like special tokens."""
    return tuple(sorted(marker for marker in family.markers if "|" in marker or "｜" in marker or marker[0] == "["))


def ids_of(markers: tuple[str, ...]) -> dict[str, int]:
    """Their places in the vocabulary."""
    return {marker: 257 + place for place, marker in enumerate(markers)}


def calls_in(family: Family, text: str, ending: str = "") -> tuple[str, list[tuple[str, Any]]]:
    """The content and the calls of an answer."""
    parser = open_parser(family, tools=TOOLS, ending=ending)
    events = [*parser.feed(text), *parser.finish()]
    calls = [
        (
            event.name,
            "".join(one.arguments for one in events if isinstance(one, ToolCallDelta) and one.index == event.index),
        )
        for event in events
        if isinstance(event, ToolCallStarted)
    ]
    content = "".join(event.text for event in events if isinstance(event, TextDelta))
    return content, [(name, json.loads(arguments)) for name, arguments in calls]


def check_calls(calls: list[tuple[str, Any]]) -> None:
    """Each is of a tool, and as its schema demands."""
    schemas = {tool.name: json.loads(tool.parameters or "{}") for tool in TOOLS}
    del schemas["get_weather"]["properties"]["city"]["maxLength"]  # text between tags has any length
    for name, arguments in calls:
        jsonschema.validate(arguments, schemas[name])


@FAMILY
@pytest.mark.parametrize("kind", ["special tokens", "plain text"])
def test_a_required_call_can_be_read_and_fits_its_schema(family: Family, kind: str) -> None:
    """Whatever the grammar lets a model write is nothing but calls that the same family's parser reads."""
    markers = markers_of(family) if kind == "special tokens" else ()
    grammar = tool_grammar(family, TOOLS, ToolChoice(mode="required"), special_ids=ids_of(markers))
    assert grammar is not None
    seen = set()
    for seed in range(5):
        text = Walk(grammar, markers, seed=seed).text()
        content, calls = calls_in(family, text)
        assert calls, text
        assert family.is_harmony or content.strip() == "", text
        check_calls(calls)
        seen |= {name for name, _ in calls}
    assert len(seen) > 1


@FAMILY
def test_a_named_call_is_of_that_tool_alone(family: Family) -> None:
    """And there is one when no more are allowed."""
    choice = ToolChoice(mode="named", name="now", allows_several=False)
    grammar = tool_grammar(family, TOOLS, choice, ending="</think>")
    assert grammar is not None
    text = Walk(grammar, (), seed=1).text()
    assert calls_in(family, text)[1] == [("now", {})]


def accepts(grammar: Grammar | None, text: str, markers: tuple[str, ...] = ()) -> bool:
    """Whether a grammar lets an answer be so."""
    assert grammar is not None
    matcher = LLMatcher(tokenizer_of(markers), source_of(grammar), log_level=0)
    return matcher.consume_tokens(list(text.encode())) and matcher.is_accepting()


QWEN = BY_NAME["qwen3"]
LLAMA = BY_NAME["llama-3"]
GPT = BY_NAME["gpt-oss"]
CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
STRICT = '<tool_call>\n{"name": "get_weather", "arguments": {"days": 3, "city": "Rom"}}\n</tool_call>'


def test_no_grammar_where_nothing_has_to_be_made_sure() -> None:
    """Calls as the model likes, of tools that are not strict, and none at all."""
    assert tool_grammar(QWEN, (NOW,), ToolChoice()) is None
    assert tool_grammar(QWEN, TOOLS, ToolChoice(mode="none")) is None
    assert tool_grammar(QWEN, TOOLS, ToolChoice(mode="named", name="other")) is None
    assert tool_grammar(QWEN, (), ToolChoice(mode="required")) is None


def test_required_calls_after_thoughts_that_the_model_may_open() -> None:
    """With thoughts and without, but never without calls."""
    grammar = tool_grammar(QWEN, TOOLS, ToolChoice(mode="required"))
    assert accepts(grammar, CALL)
    assert accepts(grammar, f"<think>\nHm. {CALL}\n</think>\n\n{CALL}\n{CALL}")
    assert not accepts(grammar, "<think>\nHm.\n</think>\n\n")
    assert not accepts(grammar, f"Hello. {CALL}")
    assert not accepts(tool_grammar(QWEN, TOOLS, ToolChoice(mode="required", allows_several=False)), f"{CALL}\n{CALL}")


def test_required_calls_after_thoughts_that_the_prompt_has_opened() -> None:
    """The grammar holds from the tag that closes them on, newlines included."""
    grammar = tool_grammar(QWEN, TOOLS, ToolChoice(mode="required"), ending="<think>\n")
    assert grammar is not None
    assert grammar.after == "</think>"
    assert accepts(grammar, f"\n\n{CALL}")
    closed = tool_grammar(QWEN, TOOLS, ToolChoice(mode="required"), ending="<think>\n\n</think>\n\n")
    assert closed is not None
    assert closed.after is None
    assert not accepts(closed, f"<think></think>{CALL}")


def test_calls_of_strict_tools_among_words() -> None:
    """Words are free; once a call begins, it is of a tool, and its arguments fit."""
    grammar = tool_grammar(QWEN, TOOLS, ToolChoice())
    assert accepts(grammar, "Hello <b>!")
    assert accepts(grammar, f"<think>\nHm.\n</think>\n\nI look.\n{STRICT}\n{CALL}")
    assert not accepts(grammar, STRICT.replace("3", "30"))
    assert not accepts(grammar, STRICT.replace("get_weather", "other"))
    bare = tool_grammar(LLAMA, TOOLS, ToolChoice())
    assert accepts(bare, "Hello {!")
    assert accepts(bare, "")
    assert accepts(bare, '{"name": "now", "parameters": {}}')
    assert not accepts(bare, '{"name": "no", "parameters": {}}')
    channels = tool_grammar(GPT, TOOLS, ToolChoice())
    assert accepts(channels, "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>Hello")
    assert not accepts(channels, "Hello")


def test_a_tool_without_a_schema_takes_any_object() -> None:
    """Whatever the format."""
    tools = (Tool(name="any"), Tool(name="odd", parameters="[]"))
    assert accepts(
        tool_grammar(LLAMA, tools, ToolChoice(mode="required")),
        '{"name": "odd", "parameters": {"x": [1, {"y": null}]}}',
    )


def test_an_answers_own_grammar_leaves_room_for_thoughts() -> None:
    """Of every kind of grammar, opened by the model, by the prompt, or not at all."""
    plain = Grammar(kind="choice", source='["yes", "no"]')
    assert answer_grammar(LLAMA, plain) == plain
    assert answer_grammar(QWEN, plain, ending="</think>\n\n") == plain
    assert answer_grammar(QWEN, plain, ending="<think>\n").after == "</think>"
    for grammar, good, bad in (
        (plain, "yes", "maybe"),
        (Grammar(kind="regex", source="a/b+\n"), "a/bb\n", "a/"),
        (Grammar(kind="regex", source=r"\d\/\d"), "1/2", r"1\/2"),
        (Grammar(kind="json_object", source=""), '{"a":1}', "[]"),
        (Grammar(kind="json_schema", source='{"type": "boolean"}'), "true", "1"),
        (Grammar(kind="lark", source='start: "x" b\nb: "y"'), "xy", "x"),
    ):
        thinking = answer_grammar(QWEN, grammar)
        channels = answer_grammar(GPT, grammar)
        for text, is_good in ((good, True), (bad, False)):
            assert accepts(thinking, text) is is_good
            assert accepts(thinking, f"<think>\nHm.\n</think>\n\n{text}") is is_good
            assert not accepts(thinking, f"<think>\nHm.\n</think>\n\n {text}")  # it would be answer
            assert accepts(channels, f"<|channel|>final<|message|>{text}") is is_good


def test_an_answers_own_grammar_leaves_room_for_calls() -> None:
    """In the answer's place, when the model may choose."""
    grammar = answer_grammar(QWEN, Grammar(kind="choice", source='["yes"]'), tools=TOOLS, choice=ToolChoice())
    assert accepts(grammar, "yes")
    assert accepts(grammar, f"<think>\nHm.\n</think>\n\n{CALL}")
    assert not accepts(grammar, "Hello")
