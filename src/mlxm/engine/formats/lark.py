"""Writes the rules that keep an answer to a family's markup, in the Lark dialect of llguidance."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from mlxm.types import Tool

_SPACING: Final = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_ANY: Final = "/(?s:.*)/"


class Written(NamedTuple):
    """Calls as a format writes them: what opens the first one, and an expression for all behind that."""

    opener: str
    rest: str


class Rules:
    """Rules under way; the texts of special tokens, of which it is told the ids, are spelled as those tokens."""

    def __init__(self, special_ids: Mapping[str, int]) -> None:
        self._special_ids = special_ids
        self._splitting = re.compile("|".join(f"({re.escape(token)})" for token in special_ids) or r"(?!)()")
        self._rules: list[str] = []

    def text(self, text: str) -> str:
        """Exactly this text."""
        parts = [part for part in self._splitting.split(text) if part]
        return " ".join(self._spell(part) for part in parts) or '""'

    def until(self, end: str) -> str:
        """Any text up to and with `end`."""
        if self._splitting.search(end):
            return f"{_ANY} {self.text(end)}"
        return self.rule(_ANY, f"[suffix={_quote(end)}]")

    def json(self, schema: Any, *, is_strict: bool) -> str:
        """A JSON value that fits the schema, of which keywords that cannot be enforced count only when it is strict."""
        guided = {} if schema is True else dict(schema)
        return self.rule("%json " + json.dumps(guided | {"x-guidance": _SPACING | {"lenient": not is_strict}}))

    def one_of(self, expressions: Iterable[str]) -> str:
        """Any one of these."""
        return self.rule(" | ".join(expressions))

    def rule(self, expression: str, options: str = "") -> str:
        """A name for an expression."""
        name = f"r{len(self._rules)}"
        self._rules.append(f"{name}{options}: {expression}")
        return name

    def source(self, start: str) -> str:
        """All rules."""
        return "\n".join((f"start: {start}", *self._rules))

    def _spell(self, part: str) -> str:
        return f"<[{self._special_ids[part]}]>" if part in self._special_ids else _quote(part)


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def schema_of(tool: Tool) -> dict[str, Any]:
    """The schema of a tool's arguments; any object when it has none."""
    schema = {} if tool.parameters is None else msgspec.json.decode(tool.parameters)
    return {"type": "object"} | schema if isinstance(schema, dict) else {"type": "object"}


def arguments_of(tool: Tool, rules: Rules) -> str:
    """A tool's arguments as JSON."""
    return rules.json(schema_of(tool), is_strict=tool.is_strict)


class Parameter(NamedTuple):
    """One argument by its schema, which has the definitions of the whole with it."""

    name: str
    schema: Any
    is_required: bool


def parameters_of(tool: Tool) -> list[Parameter]:
    """A tool's arguments one by one, those that have to be there first."""
    whole = schema_of(tool)
    definitions = {key: whole[key] for key in ("$defs", "definitions") if key in whole}
    required = whole.get("required", ())
    found = [
        Parameter(name, definitions | part if isinstance(part, dict) else {}, name in required)
        for name, part in whole.get("properties", {}).items()
    ]
    return sorted(found, key=lambda parameter: not parameter.is_required)
