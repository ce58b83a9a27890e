"""The tools of OpenAI's responses: functions are offered, what a cloud would run by itself is not there."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta, Struct, field

from mlxm.errors import UnsupportedParameter
from mlxm.types import Tool, ToolChoice
from mlxm.wire.fields import decode, read_object
from mlxm.wire.kinds import FunctionName, Json, Text, is_given
from mlxm.wire.openai_tools import (
    MAX_PARAMETERS_BYTES,
    MAX_PARAMETERS_DEPTH,
    AllowedChoice,
    AllowedTools,
    Choice,
    Function,
    FunctionNamed,
    FunctionTool,
    NamedChoice,
    read_tools,
)
from mlxm.wire.tagged import decode_at, shown_type, type_of

Tools = Annotated[tuple[Json, ...], Meta(max_length=1024)]
_NULL: Final = Json(b"null")
_PLACE: Final = "tool_choice"


class AskedFunction(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A function and the JSON Schema of its arguments."""

    type: Literal["function"] = "function"
    name: FunctionName
    description: Text | None = None
    parameters: Json = field(default_factory=Json)
    strict: bool | None = None
    allowed_callers: Json = field(default_factory=Json)
    defer_loading: Json = field(default_factory=Json)
    output_schema: Json = field(default_factory=Json)


class ToldFunction(Struct, frozen=True, kw_only=True):
    """A function as it stands in the answer."""

    type: Literal["function"] = "function"
    name: str
    description: str | None
    parameters: Json
    strict: bool


class _NamedFunction(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    type: Literal["function"]
    name: FunctionName


class _Allowed(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Tools


class Offered(Struct, frozen=True, kw_only=True):
    """The tools of a request, in neutral form and as the answer repeats them, and what of them changes nothing."""

    tools: tuple[Tool, ...]
    choice: ToolChoice
    told: tuple[ToldFunction, ...]
    ignored: tuple[str, ...]


def read_offered(tools: Tools | None, choice: Json, *, parallel: bool | None) -> Offered:
    """The neutral form; InvalidRequest for a choice that the tools do not allow."""
    functions: list[Function] = []
    ignored: dict[str, None] = {}
    for index, value in enumerate(() if tools is None else tools):
        place = f"tools[{index}]"
        kind = type_of(value, place)
        if kind is not None and kind != "function":
            ignored[f"{place}.{shown_type(kind)}"] = None
            continue
        asked = decode_at(value, AskedFunction, place)
        aside = {"allowed_callers": asked.allowed_callers, "defer_loading": asked.defer_loading}
        aside["output_schema"] = asked.output_schema
        ignored |= {f"tools[].{name}": None for name, given in aside.items() if is_given(given)}
        functions.append(_function(asked, place))
    found = read_tools(tuple(map(FunctionTool, functions)), _choice(choice), parallel=parallel)
    return Offered(tools=found.tools, choice=found.choice, told=tuple(map(_told, functions)), ignored=tuple(ignored))


def _function(asked: AskedFunction, place: str) -> Function:
    parameters = asked.parameters
    if is_given(parameters):
        text = read_object(
            parameters, f"{place}.parameters", max_bytes=MAX_PARAMETERS_BYTES, max_depth=MAX_PARAMETERS_DEPTH
        )
        parameters = Json(text.encode())
    return Function(name=asked.name, description=asked.description, parameters=parameters, strict=asked.strict)


def _told(function: Function) -> ToldFunction:
    return ToldFunction(
        name=function.name,
        description=function.description,
        parameters=function.parameters if is_given(function.parameters) else _NULL,
        strict=bool(function.strict),
    )


def _choice(given: Json) -> Choice | None:
    if not is_given(given):
        return None
    if bytes(given).lstrip().startswith(b'"'):
        return decode_at(given, Literal["none", "auto", "required"], _PLACE)  # type: ignore[arg-type]
    match type_of(given, _PLACE):
        case "function":
            return NamedChoice(FunctionNamed(decode_at(given, _NamedFunction, _PLACE).name))
        case "allowed_tools":
            allowed = decode_at(given, _Allowed, _PLACE)
            return AllowedChoice(AllowedTools(allowed.mode, _allowed(allowed.tools)))
        case _:
            raise UnsupportedParameter(
                "Only functions can be chosen.", hint="Name a function, or leave it out.", param=_PLACE
            )


def _allowed(tools: Tools) -> tuple[NamedChoice, ...]:
    """The functions among the tools that are allowed; the others are not there anyway."""
    kinds = ((tool, type_of(tool, f"{_PLACE}.tools")) for tool in tools)
    return tuple(
        NamedChoice(FunctionNamed(decode(bytes(tool), _NamedFunction).name))
        for tool, kind in kinds
        if kind == "function"
    )
