"""Tools, calls and results in words, for templates that know nothing of them: any model can be told how to call."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Final

from mlxm.engine.formats.families import DESCRIBED_FORMAT, Family
from mlxm.engine.formats.json_calls import JsonCalls
from mlxm.engine.formats.tools import TOOLS
from mlxm.types import Tool, ToolCallPart

_NO_PARAMETERS: Final[dict[str, Any]] = {"type": "object", "properties": {}}
_LEAD: Final = "You can call functions. Each line between these tags describes one of them in JSON:"
_HOW: Final = (
    "To call a function, write a JSON object with its name and its arguments between tags like these, one pair of tags "
    "for each call, and nothing after the last of them:"
)
_EXAMPLE: Final = '{"name": "name-of-the-function", "arguments": {"name-of-a-parameter": "its value"}}'
_THEN: Final = "You are then told what the functions returned, between <tool_response> tags."


def plain_tool(tool: Tool) -> dict[str, Any]:
    """A tool as templates take it: nothing that they may print is missing."""
    return {
        "type": "function",
        "function": {
            "name": tool.name,
            "description": "" if tool.description is None else tool.description,
            "parameters": _NO_PARAMETERS if tool.parameters is None else json.loads(tool.parameters),
        },
    }


def completed(tool: dict[str, Any]) -> dict[str, Any]:
    """The same with what some templates print of each parameter: its description."""
    function = tool["function"]
    schema = function["parameters"]
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        return {**tool, "function": {**function, "parameters": {**schema, "properties": {}}}}
    filled = {name: _completed_parameter(parameter) for name, parameter in properties.items()}
    parameters = {"required": [], **schema, "properties": filled}
    return {**tool, "function": {**function, "parameters": parameters}}


def _completed_parameter(parameter: object) -> object:
    return {"type": "any", "description": "", **parameter} if isinstance(parameter, dict) else parameter


def describe_tools(tools: Iterable[dict[str, Any]]) -> str:
    """What the tools are and how to call them."""
    lines = "\n".join(_json(tool["function"]) for tool in tools)
    call = _wrap(_format_of(None), [_EXAMPLE])
    return f"{_LEAD}\n<tools>\n{lines}\n</tools>\n\n{_HOW}\n{call}\n{_THEN}"


def write_calls(calls: Sequence[ToolCallPart], family: Family | None) -> str:
    """Calls as the model writes them: in its family's way, or in the one that has been described to it."""
    written = _format_of(family)
    name, arguments = written.keys
    return _wrap(
        written,
        [f'{{"{name}": {_json(call.name)}, "{arguments}": {call.arguments.strip() or "{}"}}}' for call in calls],
    )


def write_results(texts: Iterable[str]) -> str:
    """What tools returned."""
    return "\n".join(f"<tool_response>\n{text}\n</tool_response>" for text in texts)


def _format_of(family: Family | None) -> JsonCalls:
    names = () if family is None else family.tools
    formats = (TOOLS[name] for name in (*names, DESCRIBED_FORMAT))
    return next(each for each in formats if isinstance(each, JsonCalls) and each.opens)


def _wrap(written: JsonCalls, calls: list[str]) -> str:
    before, after = written.opens[0] + written.pad, written.pad + written.close
    if written.writes_list:
        return f"{before}[{', '.join(calls)}]{after}"
    return "\n".join(f"{before}{call}{after}" for call in calls)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
