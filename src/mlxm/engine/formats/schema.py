"""What a tool's schema says about each argument, for formats that write values without saying what they are."""

from __future__ import annotations

import ast
import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal, overload

import msgspec

from mlxm.types import Tool

JsonType = Literal["string", "integer", "number", "boolean", "null", "object", "array"]
ParameterTypes = Mapping[str, frozenset[JsonType]]
"""The types that each parameter may have; an empty set when its schema does not say."""

_TEXT: Final = frozenset({"string"})
_NUMBER: Final = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][-+]?\d+)?")
_DEPTH: Final = 8
_KINDS: Final[tuple[tuple[type, JsonType], ...]] = (
    (bool, "boolean"),
    (int, "integer"),
    (float, "number"),
    (str, "string"),
    (list, "array"),
    (dict, "object"),
)
_ALL_TYPES: Final[tuple[JsonType, ...]] = ("string", "integer", "number", "boolean", "null", "object", "array")


def read_types(tool: Tool) -> ParameterTypes:
    """The types of a tool's parameters; nothing when its schema is no schema of an object."""
    if tool.parameters is None:
        return {}
    try:
        schema = msgspec.json.decode(tool.parameters)
    except msgspec.DecodeError:
        return {}
    properties = schema.get("properties") if isinstance(schema, dict) else None
    if not isinstance(properties, dict):
        return {}
    return {name: frozenset(_types(part, schema, _DEPTH)) for name, part in properties.items()}


def _types(schema: Any, root: dict[str, Any], depth: int) -> Iterator[JsonType]:
    if not isinstance(schema, dict) or depth == 0:
        return
    named = schema.get("type")
    for name in [named] if isinstance(named, str) else _list(named):
        yield from (known for known in _ALL_TYPES if known == name)
    for value in [*_list(schema.get("enum")), *([schema["const"]] if "const" in schema else ())]:
        yield _type_of(value)
    for part in (part for key in ("anyOf", "oneOf", "allOf") for part in _list(schema.get(key))):
        yield from _types(part, root, depth - 1)
    if isinstance(schema.get("$ref"), str):
        yield from _types(_find(schema["$ref"], root), root, depth - 1)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _type_of(value: Any) -> JsonType:
    return next((name for kind, name in _KINDS if isinstance(value, kind)), "null")


def _find(reference: str, root: dict[str, Any]) -> Any:
    place: Any = root
    for step in reference.removeprefix("#").strip("/").split("/"):
        place = place.get(step) if isinstance(place, dict) else None
    return place


def is_text(types: frozenset[JsonType] | None, *, untyped_is_text: bool) -> bool:
    """Whether a value is a string whatever it looks like; None for a parameter that the schema lacks."""
    return untyped_is_text if types is None else types == _TEXT


def to_json(text: str, types: frozenset[JsonType] | None) -> str:
    """A value as JSON, of the first of its types that it can be; text of none of them is a string."""
    words = text.strip()
    for attempt in (_constant, _number, _structure):
        value = attempt(words, types or frozenset(_ALL_TYPES))
        if value is not None:
            return value
    return json.dumps(text, ensure_ascii=False)


def _constant(text: str, types: frozenset[JsonType]) -> str | None:
    if "boolean" in types and text in {"true", "True", "false", "False"}:
        return text.lower()
    if "null" in types and text in {"null", "None"}:
        return "null"
    return None


def _number(text: str, types: frozenset[JsonType]) -> str | None:
    if not types & {"integer", "number"} or not _NUMBER.fullmatch(text):
        return None
    if "number" not in types and not _is_whole(text):
        return None
    return text


def _is_whole(text: str) -> bool:
    value = float(text)
    return math.isfinite(value) and value.is_integer()


def _structure(text: str, types: frozenset[JsonType]) -> str | None:
    """An object or array, written in JSON or as Python prints it."""
    if not ("object" in types and text.startswith("{")) and not ("array" in types and text.startswith("[")):
        return None
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return _python_structure(text)
    return text


def _python_structure(text: str) -> str | None:
    try:
        return write_json(ast.literal_eval(parse_python(text, "eval").body))
    except (MemoryError, RecursionError, SyntaxError, TypeError, ValueError):
        return None


def write_json(value: object) -> str:
    """What Python has read, as JSON; halves of characters that were escaped one by one become whole characters.

    Raises ValueError for what JSON has no way to say, half a character among it.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-16", "surrogatepass").decode("utf-16")


@overload
def parse_python(text: str, mode: Literal["exec"]) -> ast.Module: ...
@overload
def parse_python(text: str, mode: Literal["eval"]) -> ast.Expression: ...
def parse_python(text: str, mode: Literal["exec", "eval"]) -> ast.AST:
    """The tree of a Python text; what Python would warn about is the model's matter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(text, mode=mode)
