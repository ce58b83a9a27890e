"""OpenAI's responses: the response object with all its fields, and the items of its output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from mlxm.types import TokenLogprobs, ToolCallStarted, Usage
from mlxm.wire.kinds import Json, is_given
from mlxm.wire.openai_chat_answers import ChoiceLogprobs, ChosenToken
from mlxm.wire.openai_responses import SEALED, ResponsesRequest
from mlxm.wire.openai_responses_items import Status
from mlxm.wire.openai_responses_tools import ToldFunction
from mlxm.wire.sealed import seal

_AUTO: Final = Json(b'"auto"')
_PLAIN: Final[dict[str, Any]] = {"format": {"type": "text"}, "verbosity": "medium"}


class OutputText(Struct, frozen=True, kw_only=True, tag_field="type", tag="output_text"):
    """What the assistant said."""

    text: str
    annotations: tuple[()] = ()
    logprobs: tuple[ChosenToken, ...] = ()


class ReasoningText(Struct, frozen=True, kw_only=True, tag_field="type", tag="reasoning_text"):
    """What it thought."""

    text: str


class MessageItem(Struct, frozen=True, kw_only=True, tag_field="type", tag="message"):
    """Something that the assistant said."""

    id: str
    status: Status
    role: Literal["assistant"] = "assistant"
    content: tuple[OutputText, ...] = ()


class ReasoningItem(Struct, frozen=True, kw_only=True, tag_field="type", tag="reasoning"):
    """Something that it thought; sealed only for clients that ask for it."""

    id: str
    summary: tuple[()] = ()
    content: tuple[ReasoningText, ...] = ()
    encrypted_content: str | None = None
    status: Status


class FunctionCallItem(Struct, frozen=True, kw_only=True, tag_field="type", tag="function_call"):
    """A call."""

    id: str
    call_id: str
    name: str
    arguments: str
    status: Status


Item = MessageItem | ReasoningItem | FunctionCallItem
Kind = Literal["message", "reasoning", "function_call"]
_ID_STARTS: Final[dict[Kind, str]] = {"message": "msg", "reasoning": "rs", "function_call": "fc"}


class Output:
    """One item of the output while it grows."""

    def __init__(self, kind: Kind, suffix: str, call: ToolCallStarted | None = None) -> None:
        self.kind = kind
        self.id = f"{_ID_STARTS[kind]}_{suffix}"
        self.call = call
        self.pieces: list[str] = []
        self.logprobs: list[TokenLogprobs] = []

    @property
    def text(self) -> str:
        """All that has come."""
        return "".join(self.pieces)

    @property
    def part(self) -> OutputText | ReasoningText:
        """Its one part, of an item that has parts."""
        if self.kind == "reasoning":
            return ReasoningText(text=self.text)
        return OutputText(text=self.text, logprobs=told_logprobs(self.logprobs))

    def item(self, status: Status, *, is_sealed: bool) -> Item:
        """As it stands in the response."""
        if self.call is not None:
            return FunctionCallItem(
                id=self.id, call_id=self.call.id, name=self.call.name, arguments=self.text, status=status
            )
        part = self.part
        if isinstance(part, ReasoningText):
            sealed = seal(part.text) if is_sealed else None
            return ReasoningItem(id=self.id, content=(part,), encrypted_content=sealed, status=status)
        return MessageItem(id=self.id, content=(part,), status=status)

    def beginning(self) -> Item:
        """As it is when nothing of it has come."""
        if self.call is not None:
            return FunctionCallItem(
                id=self.id, call_id=self.call.id, name=self.call.name, arguments="", status="in_progress"
            )
        if self.kind == "reasoning":
            return ReasoningItem(id=self.id, status="in_progress")
        return MessageItem(id=self.id, status="in_progress")


def told_logprobs(tokens: list[TokenLogprobs]) -> tuple[ChosenToken, ...]:
    """The neutral logprobs in this dialect's words."""
    return ChoiceLogprobs.of(tokens).content if tokens else ()


class InputDetails(Struct, frozen=True):
    """How much of the prompt was known already."""

    cached_tokens: int


class OutputDetails(Struct, frozen=True):
    """How much of the answer was thought rather than said."""

    reasoning_tokens: int


class ResponseUsage(Struct, frozen=True, kw_only=True):
    """Tokens of the whole request."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int

    @classmethod
    def of(cls, usage: Usage, num_thought: int) -> ResponseUsage:
        """The neutral usage in this dialect's words."""
        return cls(
            input_tokens=usage.prompt_tokens,
            input_tokens_details=InputDetails(usage.cached_tokens),
            output_tokens=usage.completion_tokens,
            output_tokens_details=OutputDetails(usage.reasoning_tokens or num_thought),
            total_tokens=usage.prompt_tokens + usage.completion_tokens,
        )


class ReasoningTold(Struct, frozen=True, kw_only=True):
    """What was asked of its thoughts."""

    effort: str | None
    summary: None = None


class IncompleteDetails(Struct, frozen=True):
    """Why an answer is not whole."""

    reason: Literal["max_output_tokens"]


class ResponseError(Struct, frozen=True):
    """What went wrong."""

    code: str
    message: str


class Response(Struct, frozen=True, kw_only=True):
    """The response, whole or on its way."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Literal["in_progress", "completed", "incomplete", "failed", "cancelled"] = "in_progress"
    background: Literal[False] = False
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    model: str
    output: tuple[Item, ...] = ()
    parallel_tool_calls: bool
    presence_penalty: float
    frequency_penalty: float
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: ReasoningTold
    safety_identifier: str | None
    service_tier: Literal["default"] = "default"
    store: bool
    temperature: float
    text: Any
    tool_choice: Json
    tools: tuple[ToldFunction, ...]
    top_logprobs: int
    top_p: float
    truncation: Literal["auto", "disabled"]
    usage: ResponseUsage | None = None
    user: str | None


class Heading(Struct, frozen=True, kw_only=True):
    """What stands at the head of an answer, when it is complete, and whether its thoughts are sealed."""

    response: Response
    is_sealed: bool
    clock: Callable[[], int]

    @classmethod
    def of(cls, request: ResponsesRequest, response_id: str, *, clock: Callable[[], int], is_stored: bool) -> Heading:
        """The heading of the answer to a request; where it says nothing, the numbers are those that change nothing."""
        response = Response(
            id=response_id,
            created_at=clock(),
            instructions=request.instructions,
            max_output_tokens=request.max_output_tokens,
            max_tool_calls=request.max_tool_calls,
            metadata={} if request.metadata is None else request.metadata,
            model=request.model,
            parallel_tool_calls=request.parallel_tool_calls is not False,
            presence_penalty=_or(request.presence_penalty, 0.0),
            frequency_penalty=_or(request.frequency_penalty, 0.0),
            previous_response_id=request.previous_response_id,
            prompt_cache_key=request.prompt_cache_key,
            reasoning=ReasoningTold(effort=None if request.reasoning is None else request.reasoning.effort),
            safety_identifier=request.safety_identifier,
            store=is_stored,
            temperature=_or(request.temperature, 1.0),
            text=_text(request),
            tool_choice=request.tool_choice if is_given(request.tool_choice) else _AUTO,
            tools=request.offered().told,
            top_logprobs=0 if request.top_logprobs is None else request.top_logprobs,
            top_p=_or(request.top_p, 1.0),
            truncation="disabled" if request.truncation is None else request.truncation,
            user=request.user,
        )
        return cls(response=response, is_sealed=SEALED in request.includes, clock=clock)


def _or(number: float | None, usual: float) -> float:
    return usual if number is None else number


def _text(request: ResponsesRequest) -> Any:
    """What was asked of the answer's form, with what goes without saying."""
    told = {} if request.text is None else msgspec.json.decode(msgspec.json.encode(request.text))
    return {**_PLAIN, **{name: value for name, value in told.items() if value is not None}}
