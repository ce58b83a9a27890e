"""The tools of Anthropic's messages: those that the client describes are offered, those of the cloud are not there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Final

from msgspec import Meta, Struct, field

from mlxm.errors import InvalidRequest, UnsupportedParameter
from mlxm.types import Tool, ToolChoice
from mlxm.wire.fields import read_object
from mlxm.wire.kinds import FunctionName, Json, Text, is_given
from mlxm.wire.openai_tools import MAX_PARAMETERS_BYTES, MAX_PARAMETERS_DEPTH
from mlxm.wire.tagged import decode_at, shown_type, type_of

# Tools that a cloud runs by itself. A model here has none of them, and a client that offers one works without it.
HOSTED: Final = ("web_search_", "web_fetch_", "code_execution_", "tool_search_", "mcp_toolset", "advisor_")
# Fields of a tool that change how a cloud sends it, and nothing here.
_ASIDE: Final = ("allowed_callers", "defer_loading", "eager_input_streaming", "input_examples")

Tools = Annotated[tuple[Json, ...], Meta(max_length=1024)]


class CustomTool(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tool that the client describes and runs."""

    type: Annotated[str, Meta(max_length=128)] | None = None
    name: FunctionName
    description: Text | None = None
    input_schema: Json
    strict: bool | None = None
    cache_control: Json = field(default_factory=Json)
    allowed_callers: Json = field(default_factory=Json)
    defer_loading: Json = field(default_factory=Json)
    eager_input_streaming: Json = field(default_factory=Json)
    input_examples: Json = field(default_factory=Json)

    def aside(self) -> Iterable[str]:
        """The fields that change nothing here."""
        given = (self.allowed_callers, self.defer_loading, self.eager_input_streaming, self.input_examples)
        return (name for name, value in zip(_ASIDE, given, strict=True) if is_given(value))


class _Parallel(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type"):
    """What every choice may say."""

    disable_parallel_tool_use: bool | None = None


class AutoChoice(_Parallel, frozen=True, kw_only=True, tag="auto"):
    """As the assistant likes."""


class AnyChoice(_Parallel, frozen=True, kw_only=True, tag="any"):
    """At least one."""


class NamedChoice(_Parallel, frozen=True, kw_only=True, tag="tool"):
    """That one."""

    name: FunctionName


class NoChoice(_Parallel, frozen=True, kw_only=True, tag="none"):
    """None at all."""


Choice = AutoChoice | AnyChoice | NamedChoice | NoChoice


class Offered(Struct, frozen=True):
    """The tools of a request, how they are to be called, and what of them changes nothing."""

    tools: tuple[Tool, ...]
    choice: ToolChoice
    ignored: tuple[str, ...]


def read_tools(tools: Tools | None, choice: Choice | None) -> Offered:
    """The neutral form; InvalidRequest for a choice that the tools do not allow."""
    offered: list[Tool] = []
    ignored: dict[str, None] = {}
    for index, value in enumerate(() if tools is None else tools):
        place = f"tools[{index}]"
        kind = type_of(value, place)
        if kind is None or kind == "custom":
            tool = decode_at(value, CustomTool, place)
            ignored |= dict.fromkeys(f"tools[].{name}" for name in tool.aside())
            offered.append(_tool(tool, place))
        elif kind.startswith(HOSTED):
            ignored[f"{place}.{shown_type(kind)}"] = None
        else:
            raise UnsupportedParameter(
                "There is no description of this tool for a model here.",
                hint="Offer it with a name and an input_schema.",
                param=f"{place}.type",
            )
    return Offered(tuple(offered), _choice(choice, offered), tuple(ignored))


def _tool(tool: CustomTool, place: str) -> Tool:
    schema = read_object(
        tool.input_schema, f"{place}.input_schema", max_bytes=MAX_PARAMETERS_BYTES, max_depth=MAX_PARAMETERS_DEPTH
    )
    return Tool(name=tool.name, description=tool.description, parameters=schema, is_strict=bool(tool.strict))


def _choice(choice: Choice | None, tools: list[Tool]) -> ToolChoice:
    if choice is None:
        return ToolChoice()
    several = not choice.disable_parallel_tool_use
    match choice:
        case AutoChoice():
            return ToolChoice(allows_several=several)
        case NoChoice():
            return ToolChoice(mode="none", allows_several=several)
        case NamedChoice(name=name):
            if name not in {tool.name for tool in tools}:
                raise InvalidRequest(f"tool_choice names {name}, which is not among the tools.", param="tool_choice")
            return ToolChoice(mode="named", name=name, allows_several=several)
        case AnyChoice():
            if not tools:
                raise InvalidRequest("tool_choice wants a call, but there are no tools.", param="tool_choice")
            return ToolChoice(mode="required", allows_several=several)
