"""OpenAI's responses: what `POST /v1/responses` takes.

Pure translation, from bytes to a neutral request; `openai_responses_answers` has the way back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct, field

from mlxm.errors import InvalidRequest
from mlxm.types import ChatRequest, Grammar, Message, Sampling, TextPart, Thinking
from mlxm.wire.fields import decode, refuse_unknown, split_fields
from mlxm.wire.kinds import Json, Name, NumLikely, NumTokens, Penalty, Share, Temperature, Text, is_given
from mlxm.wire.openai_grammar import JsonObjectFormat, TextFormat
from mlxm.wire.openai_responses_items import Conversation, Items, read_items, text_item
from mlxm.wire.openai_responses_tools import Offered, Tools, read_offered
from mlxm.wire.schemas import schema_grammar

# Values which ask for what happens anyway; any other value of these would be dropped in silence, so it is refused.
NO_OPS: Final[dict[str, tuple[Any, ...]]] = {
    "background": (False,),
    "context_management": ([],),
    "conversation": (),
    "moderation": (),
    "prompt": (),
    "service_tier": ("auto", "default"),
}

# What clients send for a cloud and for their own books: it can change nothing here, and the answer's header names it.
TOLERATED: Final = frozenset(
    {
        "client_metadata",
        "max_tool_calls",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "user",
    }
)

SEALED: Final = "reasoning.encrypted_content"
LOGPROBS: Final = "message.output_text.logprobs"
_Include = Literal[
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "web_search_call.action.sources",
    "web_search_call.results",
]


class Reasoning(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much the assistant thinks; its thoughts are told as they are, and not summed up."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto", "concise", "detailed", "none"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    context: Name | None = None

    def ignored(self) -> tuple[str, ...]:
        """What of it changes nothing."""
        given = {"summary": self.summary, "generate_summary": self.generate_summary, "context": self.context}
        return tuple(name for name, value in given.items() if value not in (None, "none"))


class SchemaFormat(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="json_schema"):
    """A JSON value that fits a schema; what is asked for is always kept, `strict` or not."""

    name: Name | None = None
    description: Text | None = None
    schema: Json
    strict: bool | None = None


class TextConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an answer has to look like."""

    format: TextFormat | JsonObjectFormat | SchemaFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class StreamOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a stream carries beside the answer."""

    include_obfuscation: Literal[False] | None = None


MetadataKey = Annotated[str, Meta(max_length=64)]
MetadataValue = Annotated[str, Meta(max_length=512)]


class ResponsesRequest(Struct, frozen=True, kw_only=True):
    """The fields that act, or are at least repeated in the answer."""

    model: Name
    input: Text | Items
    instructions: Text | None = None
    max_output_tokens: NumTokens | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    top_logprobs: NumLikely | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: Tools | None = None
    tool_choice: Json = field(default_factory=Json)
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    text: TextConfig | None = None
    truncation: Literal["auto", "disabled"] | None = None
    previous_response_id: Name | None = None
    store: bool | None = None
    include: Annotated[tuple[_Include, ...], Meta(max_length=64)] | None = None
    metadata: Annotated[dict[MetadataKey, MetadataValue], Meta(max_length=16)] | None = None
    # Only repeated in the answer:
    max_tool_calls: NumTokens | None = None
    prompt_cache_key: Name | None = None
    safety_identifier: Name | None = None
    user: Annotated[str, Meta(max_length=512)] | None = None

    @property
    def items(self) -> tuple[Json, ...]:
        """What is said with this request."""
        return (text_item(self.input),) if isinstance(self.input, str) else self.input

    @property
    def includes(self) -> frozenset[str]:
        """What is wanted beside the answer."""
        return frozenset(() if self.include is None else self.include)

    @property
    def may_truncate(self) -> bool:
        """Whether the oldest turns may be left out when all of them are too long."""
        return self.truncation == "auto"

    def ignored(self) -> tuple[str, ...]:
        """Fields inside of others that change nothing here."""
        found = [f"include.{name}" for name in sorted(self.includes - {SEALED, LOGPROBS})]
        if self.reasoning is not None:
            found += [f"reasoning.{name}" for name in self.reasoning.ignored()]
        if self.text is not None and self.text.verbosity not in (None, "medium"):
            found.append("text.verbosity")
        if self.text is not None and isinstance(self.text.format, SchemaFormat) and self.text.format.description:
            found.append("text.format.description")
        return tuple(found)

    def check(self) -> None:
        """Refuse fields that are good alone and make no sense together."""
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("stream_options needs stream to be true.", param="stream_options")
        if self.top_logprobs and LOGPROBS not in self.includes:
            raise InvalidRequest(f"top_logprobs needs {LOGPROBS} in include.", param="top_logprobs")

    def offered(self) -> Offered:
        """The tools and how they are to be called; InvalidRequest."""
        return read_offered(self.tools, self.tool_choice, parallel=self.parallel_tool_calls)

    def conversation(self, history: Sequence[Json] = ()) -> Conversation:
        """The neutral messages after what was said before."""
        said = read_items((*history, *self.items))
        if self.instructions is None:
            return said
        first = Message(role="system", content=(TextPart(self.instructions),))
        return Conversation((first, *said.messages), said.ignored)

    def to_chat(self, request_id: str, history: Sequence[Json] = ()) -> ChatRequest:
        """The neutral form; `history` are the items of the responses before."""
        offered = self.offered()
        messages = self.conversation(history).messages
        if not messages:
            raise InvalidRequest("The input is empty.", hint="Send some text.", param="input")
        likely = 0 if self.top_logprobs is None else self.top_logprobs
        return ChatRequest(
            request_id=request_id,
            model=self.model,
            messages=messages,
            sampling=self._sampling(),
            max_tokens=self.max_output_tokens,
            num_logprobs=likely if LOGPROBS in self.includes else None,
            grammar=self._grammar(),
            tools=offered.tools,
            tool_choice=offered.choice,
            thinking=self._thinking(),
        )

    def _sampling(self) -> Sampling:
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            presence_penalty=0.0 if self.presence_penalty is None else self.presence_penalty,
            frequency_penalty=0.0 if self.frequency_penalty is None else self.frequency_penalty,
        )

    def _thinking(self) -> Thinking:
        effort = None if self.reasoning is None else self.reasoning.effort
        return Thinking() if effort is None else Thinking(is_on=effort != "none", effort=effort)

    def _grammar(self) -> Grammar | None:
        match None if self.text is None else self.text.format:
            case JsonObjectFormat():
                return Grammar(kind="json_object", source="{}")
            case SchemaFormat(schema=schema):
                return schema_grammar(schema, "text.format.schema")
            case _:
                return None


class Asked(Struct, frozen=True):
    """A request that was understood, and the names of its fields that change nothing."""

    request: ResponsesRequest
    ignored: tuple[str, ...]


def read_request(body: bytes) -> Asked:
    """Decode a body strictly; InvalidRequest or UnsupportedParameter names what cannot be served."""
    known = frozenset(ResponsesRequest.__struct_fields__) - TOLERATED
    fields = split_fields(body)
    ignored = refuse_unknown(fields, known=known, no_ops=NO_OPS, tolerated=TOLERATED)
    if not is_given(fields.get("input", Json())):
        raise InvalidRequest("The request has no input.", param="input")
    request = decode(body, ResponsesRequest)
    request.check()
    return Asked(request, (*ignored, *request.ignored(), *request.offered().ignored, *request.conversation().ignored))
