"""The functions that the assistant may call, as OpenAI's requests offer them."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta, Struct, field

from mlxm.errors import InvalidRequest, UnsupportedParameter
from mlxm.types import Tool, ToolChoice
from mlxm.wire.fields import read_object
from mlxm.wire.kinds import FunctionName, Json, Text, is_given

MAX_PARAMETERS_BYTES: Final = 256 * 1024
MAX_PARAMETERS_DEPTH: Final = 64


class Function(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A function and the JSON Schema of its arguments."""

    name: FunctionName
    description: Text | None = None
    parameters: Json = field(default_factory=Json)
    strict: bool | None = None


class FunctionTool(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="function"):
    """A tool that the client runs."""

    function: Function


class CustomTool(Struct, frozen=True, tag_field="type", tag="custom"):
    """A tool with free text for arguments, which no model here knows."""


Tools = Annotated[tuple[FunctionTool | CustomTool, ...], Meta(max_length=1024)]


class FunctionNamed(Struct, frozen=True, forbid_unknown_fields=True):
    """A function by its name."""

    name: FunctionName


class NamedChoice(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="function"):
    """That function must be called."""

    function: FunctionNamed


class AllowedTools(Struct, frozen=True, forbid_unknown_fields=True):
    """Some of the tools, and whether one of them must be called."""

    mode: Literal["auto", "required"]
    tools: Annotated[tuple[NamedChoice, ...], Meta(min_length=1, max_length=1024)]


class AllowedChoice(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="allowed_tools"):
    """Only some of the tools may be called."""

    allowed_tools: AllowedTools


class CustomChoice(Struct, frozen=True, tag_field="type", tag="custom"):
    """As CustomTool."""


Choice = Literal["none", "auto", "required"] | NamedChoice | AllowedChoice | CustomChoice


class Offered(Struct, frozen=True):
    """The tools of a request, and how they are to be called."""

    tools: tuple[Tool, ...]
    choice: ToolChoice


def read_tools(
    tools: tuple[FunctionTool | CustomTool, ...] | None, choice: Choice | None, *, parallel: bool | None
) -> Offered:
    """The neutral form; raises InvalidRequest for a choice that the tools do not allow."""
    offered = tuple(_tool(tool, f"tools[{index}]") for index, tool in enumerate(() if tools is None else tools))
    several = parallel is None or parallel
    match choice:
        case NamedChoice(function=FunctionNamed(name=name)):
            _check_known((name,), offered)
            return Offered(offered, ToolChoice(mode="named", name=name, allows_several=several))
        case AllowedChoice(allowed_tools=AllowedTools(mode=mode, tools=allowed)):
            names = tuple(each.function.name for each in allowed)
            _check_known(names, offered)
            kept = tuple(tool for tool in offered if tool.name in names)
            return Offered(kept, ToolChoice(mode=mode, allows_several=several))
        case CustomChoice():
            raise _custom("tool_choice")
        case "required" if not offered:
            raise InvalidRequest("tool_choice is required, but there are no tools.", param="tool_choice")
        case _:
            return Offered(offered, ToolChoice(mode="auto" if choice is None else choice, allows_several=several))


def _tool(tool: FunctionTool | CustomTool, place: str) -> Tool:
    if isinstance(tool, CustomTool):
        raise _custom(f"{place}.type")
    function = tool.function
    return Tool(
        name=function.name,
        description=function.description,
        parameters=_parameters(function.parameters, f"{place}.function.parameters"),
        is_strict=bool(function.strict),
    )


def _parameters(given: Json, place: str) -> str | None:
    if not is_given(given):
        return None
    return read_object(given, place, max_bytes=MAX_PARAMETERS_BYTES, max_depth=MAX_PARAMETERS_DEPTH)


def _check_known(names: tuple[str, ...], tools: tuple[Tool, ...]) -> None:
    known = {tool.name for tool in tools}
    for name in names:
        if name not in known:
            raise InvalidRequest(f"tool_choice names {name}, which is not among the tools.", param="tool_choice")


def _custom(place: str) -> UnsupportedParameter:
    return UnsupportedParameter("Custom tools are not supported.", hint="Offer it as a function.", param=place)
