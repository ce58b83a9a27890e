"""Anthropic's messages: what `POST /v1/messages` takes, and what is asked to count its tokens.

Pure translation, from bytes to a neutral request; `anthropic_messages_answers` has the way back.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct, field

from mlxm.errors import InvalidRequest
from mlxm.types import ChatRequest, Grammar, Sampling, Thinking, ToolCallPart
from mlxm.wire.anthropic_messages_content import System, Turn, read_conversation
from mlxm.wire.anthropic_messages_tools import Choice, Tools, read_tools
from mlxm.wire.fields import decode, refuse_unknown, split_fields
from mlxm.wire.kinds import MAX_ITEMS, Json, Name, NumTokens, Share, StopText
from mlxm.wire.schemas import schema_grammar

# Values which ask for what happens anyway; any other value of these would be dropped in silence, so it is refused.
NO_OPS: Final[dict[str, tuple[Any, ...]]] = {
    "container": (),
    "mcp_servers": ([],),
    "service_tier": ("auto", "standard_only"),
}

# What clients send for a cloud and for their own books: it can change nothing here, and the answer's header names it.
TOLERATED: Final = frozenset(
    {
        "betas",
        "context_management",
        "diagnostics",
        "inference_geo",
        "metadata",
        "speed",
        "user_profile_id",
        "workspace_id",
    }
)

Display = Literal["summarized", "omitted"]


class EnabledThinking(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="enabled"):
    """Think, within so many tokens."""

    budget_tokens: NumTokens
    display: Display | None = None


class AdaptiveThinking(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="adaptive"):
    """Think as much as it takes."""

    display: Display | None = None


class DisabledThinking(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="disabled"):
    """Do not think."""

    display: Display | None = None


class SchemaFormat(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="json_schema"):
    """A JSON value that fits a schema."""

    schema: Json


class OutputConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much effort an answer is worth, and what it has to look like."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: SchemaFormat | None = None


class CountTokensRequest(Struct, frozen=True, kw_only=True):
    """The fields that act on the prompt; the others may stand beside them."""

    model: Name
    messages: Annotated[tuple[Turn, ...], Meta(min_length=1, max_length=MAX_ITEMS)]
    system: System | None = None
    tools: Tools | None = None
    tool_choice: Choice | None = None
    thinking: EnabledThinking | AdaptiveThinking | DisabledThinking | None = None
    output_config: OutputConfig | None = None
    output_format: SchemaFormat | None = None
    cache_control: Json = field(default_factory=Json)
    max_tokens: NumTokens | None = None
    stop_sequences: Annotated[tuple[StopText, ...], Meta(max_length=64)] | None = None
    temperature: Share | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    stream: bool | None = None

    @property
    def shows_thinking(self) -> bool:
        """Whether thoughts are told, and not only sealed."""
        return self.thinking is None or self.thinking.display != "omitted"

    def to_chat(self, request_id: str) -> Understood:
        """The neutral form, and what in it changes nothing."""
        conversation = read_conversation(self.system, self.messages)
        offered = read_tools(self.tools, self.tool_choice)
        messages = conversation.messages
        if not messages:
            raise InvalidRequest("The turns are empty.", hint="Send some text.", param="messages")
        is_begun = messages[-1].role == "assistant"
        if is_begun and any(isinstance(part, ToolCallPart) for part in messages[-1].content):
            raise InvalidRequest("A call at the end has no result.", param=f"messages[{len(self.messages) - 1}]")
        chat = ChatRequest(
            request_id=request_id,
            model=self.model,
            messages=messages,
            sampling=Sampling(temperature=self.temperature, top_p=self.top_p, top_k=self.top_k),
            max_tokens=self.max_tokens,
            stop=() if self.stop_sequences is None else self.stop_sequences,
            grammar=self._grammar(),
            tools=offered.tools,
            tool_choice=offered.choice,
            thinking=self._thinking(),
            continues_final=is_begun,
        )
        return Understood(chat, (*conversation.ignored, *offered.ignored))

    def _thinking(self) -> Thinking:
        effort = None if self.output_config is None else self.output_config.effort
        match self.thinking:
            case None:
                return Thinking(effort=effort)
            case DisabledThinking():
                return Thinking(is_on=False)
            case AdaptiveThinking():
                return Thinking(is_on=True, effort=effort)
            case EnabledThinking(budget_tokens=budget):
                if self.max_tokens is not None and budget >= self.max_tokens:
                    raise InvalidRequest(
                        f"thinking.budget_tokens is {budget}, and max_tokens of {self.max_tokens} leaves no answer.",
                        param="thinking.budget_tokens",
                    )
                return Thinking(is_on=True, effort=effort, budget_tokens=budget)

    def _grammar(self) -> Grammar | None:
        if self.output_config is not None and self.output_config.format is not None:
            return schema_grammar(self.output_config.format.schema, "output_config.format.schema")
        return None if self.output_format is None else schema_grammar(self.output_format.schema, "output_format.schema")


class MessagesRequest(CountTokensRequest, frozen=True, kw_only=True):
    """The fields that act."""

    max_tokens: NumTokens


class Understood(Struct, frozen=True):
    """A neutral request, and what in the fields changes nothing."""

    chat: ChatRequest
    ignored: tuple[str, ...]


class Asked(Struct, frozen=True):
    """A request that was understood, and the names of its fields that change nothing."""

    request: CountTokensRequest
    ignored: tuple[str, ...]


def read_messages(body: bytes) -> Asked:
    """A request for an answer, decoded strictly; InvalidRequest or UnsupportedParameter names what cannot be served."""
    return _read(body, MessagesRequest)


def read_count_tokens(body: bytes) -> Asked:
    """A request for the number of its tokens, as `read_messages`."""
    return _read(body, CountTokensRequest)


def _read(body: bytes, kind: type[CountTokensRequest]) -> Asked:
    ignored = refuse_unknown(
        split_fields(body), known=frozenset(kind.__struct_fields__), no_ops=NO_OPS, tolerated=TOLERATED
    )
    return Asked(decode(body, kind), ignored)
