from __future__ import annotations

import json
import subprocess
import sys

import pytest

from mlxm.engine.grammar import vet
from mlxm.errors import InvalidRequest
from mlxm.types import Grammar


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("json_schema", '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}'),
        ("json_schema", "true"),
        ("json_schema", '{"description": "notes are read by people", "x-order": 1, "type": "string"}'),
        ("json_schema", '{"$defs": {"n": {"properties": {"next": {"$ref": "#/$defs/n"}}}}, "$ref": "#/$defs/n"}'),
        ("json_schema", json.dumps({"enum": [f"value {number}" for number in range(2000)]})),
        ("json_object", ""),
        ("regex", r"\d{3}-\w+"),
        ("regex", ""),
        ("choice", '["a", "b \\"c\\"", "\\u00fc\\n"]'),
        ("lark", 'start: "a" start | "b"'),
        ("lark", "start: <|im_end|>"),
    ],
)
def test_what_can_be_followed_passes(kind: str, source: str) -> None:
    """No model is needed to know."""
    vet(Grammar(kind=kind, source=source))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "source", "words"),
    [
        ("json_schema", '{"not": {}, "if": {}}', "not supported: if, not"),
        ("json_schema", '{"properties": {"a": {"propertyNames": {}}}}', "not supported: propertyNames"),
        ("json_schema", '{"x-guidance": {"lenient": true}, "not": {}}', "not supported: x-guidance"),
        ("json_schema", '{"type": "strin"}', "strin"),
        ("json_schema", '{"type": "string", "format": "nonsense"}', "nonsense"),
        ("json_schema", '{"$ref": "#/$defs/missing"}', "missing"),
        ("json_schema", '{"$ref": "http://127.0.0.1:9/schema"}', "schema"),
        ("json_schema", '{"enum": []}', "cannot be used"),
        ("json_schema", "[1]", "no object"),
        ("json_schema", "{", "no JSON"),
        ("json_schema", '{"maximum": NaN}', "NaN"),
        ("json_schema", "[" * 100_000, "64 levels"),
        ("json_schema", '{"items":' * 70 + "{}" + "}" * 70, "64 levels"),
        ("json_schema", json.dumps({"const": "x" * 300_000}), "256 KiB"),
        ("regex", "[a", "unclosed"),
        ("regex", "(?=a)b", "look-around"),
        ("regex", "(" * 70 + "a" + ")" * 70, "64 levels"),
        ("regex", "(a{1000}){1000}", "cannot be used"),
        ("choice", "[]", "choices"),
        ("choice", '["a", ""]', "choices"),
        ("choice", '["a", 1]', "choices"),
        ("lark", "start: missing", "missing"),
        ("lark", 'start: "a', "cannot be used"),
        ("lark", 'start: %json {"not": {}}', "not supported: not"),
    ],
)
def test_what_cannot_be_followed_is_refused_in_words(kind: str, source: str, words: str) -> None:
    """One line that names what is wrong, and what to do."""
    with pytest.raises(InvalidRequest, match=words) as refused:
        vet(Grammar(kind=kind, source=source))  # type: ignore[arg-type]
    assert refused.value.param == "response_format"
    assert refused.value.hint
    assert "\n" not in refused.value.message
    assert len(refused.value.message) < 400


def test_a_long_marker_is_refused() -> None:
    """It is looked for in every token."""
    with pytest.raises(InvalidRequest, match="256 bytes"):
        vet(Grammar(kind="regex", source="a", after="x" * 257))


def test_the_library_is_imported_by_the_first_grammar_only() -> None:
    """Most processes never see one."""
    code = "import sys, mlxm.engine.engine, mlxm.prep.jobs; print('llguidance' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
