"""OpenAI's chat completions: what `POST /v1/chat/completions` takes.

Pure translation, from bytes to a neutral request; `openai_chat_answers` has the way back.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Raw, Struct, field

from mlxm.errors import InvalidRequest, UnsupportedParameter
from mlxm.types import ChatRequest, Message, Thinking
from mlxm.wire import openai_options
from mlxm.wire.fields import decode, read_object, refuse_unknown, split_fields
from mlxm.wire.kinds import MAX_ITEMS, Json, NumLikely, NumTokens, is_given
from mlxm.wire.openai_messages import MESSAGE_NO_OPS, ChatMessage, ignored_marks
from mlxm.wire.openai_options import TextRequest, fields_of
from mlxm.wire.openai_tools import Choice, Tools, read_tools

MAX_TEMPLATE_OPTIONS_BYTES: Final = 64 * 1024
MAX_TEMPLATE_OPTIONS_DEPTH: Final = 16

# Values which ask for what happens anyway; any other value of these would be dropped in silence, so it is refused.
NO_OPS: dict[str, tuple[Any, ...]] = {
    **openai_options.NO_OPS,
    "add_generation_prompt": (True,),
    "audio": (),
    "chat_template": (),
    "echo": (False,),
    "function_call": ("auto", "none"),
    "functions": ([],),
    "modalities": (["text"],),
    "prediction": (),
    "verbosity": ("medium",),
    "web_search_options": (),
}
TOLERATED = openai_options.TOLERATED


class ChatCompletionRequest(TextRequest, frozen=True, kw_only=True):
    """The fields that act."""

    messages: Annotated[tuple[ChatMessage, ...], Meta(min_length=1, max_length=MAX_ITEMS)]
    max_tokens: NumTokens | None = None
    max_completion_tokens: NumTokens | None = None
    logprobs: bool | None = None
    top_logprobs: NumLikely | None = None
    tools: Tools | None = None
    tool_choice: Choice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    chat_template_kwargs: Json = field(default_factory=Json)
    continue_final_message: bool | None = None

    def ignored(self) -> tuple[str, ...]:
        """Fields inside of others that change nothing here."""
        return (*super().ignored(), *ignored_marks(self.messages))

    def check(self) -> None:
        """Refuse fields that are good alone and make no sense together."""
        super().check()
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("top_logprobs needs logprobs to be true.", param="top_logprobs")
        if len({self.max_tokens, self.max_completion_tokens} - {None}) > 1:
            raise InvalidRequest(
                "max_tokens and max_completion_tokens differ.",
                hint="Send max_completion_tokens only.",
                param="max_tokens",
            )
        if self.continue_final_message and (self.messages[-1].role != "assistant" or self.messages[-1].tool_calls):
            raise InvalidRequest(
                "continue_final_message needs a last message of the assistant, without calls.",
                param="continue_final_message",
            )

    def to_chat(self, request_id: str, *, is_batch: bool = False) -> ChatRequest:
        """The neutral form."""
        offered = read_tools(self.tools, self.tool_choice, parallel=self.parallel_tool_calls)
        likely = 0 if self.top_logprobs is None else self.top_logprobs
        options = self.options(request_id, is_batch=is_batch, num_logprobs=likely if self.logprobs else None)
        return ChatRequest(
            **fields_of(options),
            messages=self._neutral_messages(),
            tools=offered.tools,
            tool_choice=offered.choice,
            thinking=self._thinking(),
            template_options=read_template_options(self.chat_template_kwargs),
            continues_final=bool(self.continue_final_message),
        )

    def _neutral_messages(self) -> tuple[Message, ...]:
        return tuple(message.to_message(f"messages[{index}]") for index, message in enumerate(self.messages))

    def _max_tokens(self) -> int | None:
        return super()._max_tokens() if self.max_completion_tokens is None else self.max_completion_tokens

    def _thinking(self) -> Thinking:
        effort = self.reasoning_effort
        return Thinking() if effort is None else Thinking(is_on=effort != "none", effort=effort)


class Asked(Struct, frozen=True):
    """A request that was understood, and the names of its fields that change nothing."""

    request: ChatCompletionRequest
    ignored: tuple[str, ...] = ()


def read_request(body: bytes) -> Asked:
    """Decode a body strictly; InvalidRequest or UnsupportedParameter names what cannot be served."""
    known = frozenset(ChatCompletionRequest.__struct_fields__)
    ignored = refuse_unknown(split_fields(body), known=known, no_ops=NO_OPS, tolerated=TOLERATED)
    request = decode(body, ChatCompletionRequest)
    refuse_unknown_in_messages(body)
    request.check()
    return Asked(request, (*ignored, *request.ignored()))


class _RawMessages(Struct):
    messages: list[dict[str, Raw]] = []


def refuse_unknown_in_messages(body: bytes) -> None:
    """Raise UnsupportedParameter for the first field of a message that would be dropped in silence."""
    known = frozenset(ChatMessage.__struct_fields__)
    for index, fields in enumerate(decode(body, _RawMessages).messages):
        if fields.keys() - known:
            refuse_unknown(fields, known=known, no_ops=MESSAGE_NO_OPS, inside=f"messages[{index}].")


def read_template_options(given: Json) -> str:
    """What the model's template takes besides, as a JSON object; the server's own variables are not among it."""
    if not is_given(given):
        return "{}"
    place = "chat_template_kwargs"
    text = read_object(given, place, max_bytes=MAX_TEMPLATE_OPTIONS_BYTES, max_depth=MAX_TEMPLATE_OPTIONS_DEPTH)
    for name in decode(text.encode(), dict[str, Raw]):
        if name in _OWN_VARIABLES:
            raise UnsupportedParameter(
                f"{name} is set by the server.", hint="Leave it out.", param=f"chat_template_kwargs.{name}"
            )
    return text


# What a template is given anyway; the request has fields of their own for some of it.
_OWN_VARIABLES = frozenset(
    {"add_generation_prompt", "bos_token", "chat_template", "continue_final_message", "eos_token", "messages", "tools"}
)
