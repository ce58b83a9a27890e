"""The neutral types that every floor speaks: requests, events and the Backend protocol.

They know no API dialect, no HTTP and no MLX. Dialects translate to and from them (`wire`), backends answer them.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Literal, Protocol

import msgspec

Role = Literal["system", "developer", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "tool_calls"]


class TextPart(msgspec.Struct, frozen=True, tag="text"):
    """A run of text inside a message."""

    text: str


class ReasoningPart(msgspec.Struct, frozen=True, tag="reasoning"):
    """What the assistant thought before it answered; `signature` is what its maker wants back with it."""

    text: str
    signature: str | None = None


class ToolCallPart(msgspec.Struct, frozen=True, kw_only=True, tag="tool_call"):
    """The assistant's call of a tool; `arguments` is JSON, as it was written."""

    id: str
    name: str
    arguments: str


Part = TextPart | ReasoningPart | ToolCallPart


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One turn of a conversation; the parts keep their order.

    A message of the role "tool" is the result of the call `tool_call_id`.
    """

    role: Role
    content: tuple[Part, ...]
    name: str | None = None
    tool_call_id: str | None = None
    is_error: bool = False
    """Whether the tool failed."""


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """A function that the assistant may call; `parameters` is a JSON Schema as JSON text."""

    name: str
    description: str | None = None
    parameters: str | None = None
    is_strict: bool = False
    """Whether arguments are to follow the schema to the letter."""


class ToolChoice(msgspec.Struct, frozen=True, kw_only=True):
    """Whether tools are called: as the assistant likes, not at all, at least one, or the one of that name."""

    mode: Literal["auto", "none", "required", "named"] = "auto"
    name: str | None = None
    allows_several: bool = True


class Thinking(msgspec.Struct, frozen=True, kw_only=True):
    """How much the assistant thinks before it answers; None leaves it to the model's template."""

    is_on: bool | None = None
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    budget_tokens: int | None = None


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How the next token is chosen; None means the model's own default.

    `presence_penalty` and `frequency_penalty` look at the answer, `repetition_penalty` at the prompt as well.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Added to the logits of these token ids."""
    min_tokens: int = 0
    """No stop token is chosen before."""
    ignore_eos: bool = False
    """The model's own stop tokens end nothing."""


class Grammar(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer has to look like: a JSON Schema, a regular expression, a JSON list of choices, or Lark rules.

    With `after`, it holds only from the first occurrence of that text on; before it the answer is free.
    """

    kind: Literal["json_schema", "json_object", "regex", "choice", "lark"]
    source: str
    after: str | None = None


class Likely(msgspec.Struct, frozen=True, array_like=True):
    """A token that the model could have chosen; `raw` are the bytes that it stands for."""

    token_id: int
    raw: bytes
    logprob: float


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """A token of the answer or of the prompt, and the likeliest ones in its place; None: nothing came before it."""

    token_id: int
    raw: bytes
    logprob: float | None
    top: tuple[Likely, ...] = ()


class AnswerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What every request for text has; `max_tokens` None means up to the context's end."""

    request_id: str
    model: str
    sampling: Sampling = Sampling()
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    """Token ids that end the answer besides the model's own."""
    num_choices: int = 1
    priority: int = 1
    """0 is high, 1 normal, 2 low."""
    num_logprobs: int | None = None
    """How many likely tokens to name beside each token of the answer; None: no logprobs at all."""
    grammar: Grammar | None = None


class ChatRequest(AnswerOptions, frozen=True, kw_only=True):
    """A conversation to be answered by `model`."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    thinking: Thinking = Thinking()
    template_options: str = "{}"
    """A JSON object of what the model's template takes besides."""
    continues_final: bool = False
    """Whether the last message, the assistant's, is the answer's beginning."""


class CompletionRequest(AnswerOptions, frozen=True, kw_only=True):
    """A text, or token ids, to be gone on with by `model`, with no template between."""

    prompt: str | tuple[int, ...]
    suffix: str | None = None
    """What comes after the answer, for models that fill in the middle."""
    echoes: bool = False
    """Whether the answer begins with the prompt, and with its logprobs if those are wanted."""


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens really processed; `cached_tokens` are those of the prompt whose prefill was skipped.

    `reasoning_tokens` are those of the answer that were thoughts, as far as its text tells.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0


class Started(msgspec.Struct, frozen=True, tag="started"):
    """The prompt is accepted and its length known; always the first event.

    `unused` names what was wished for and could not go into the prompt, as the model's template has no word for it.
    """

    prompt_tokens: int
    unused: tuple[str, ...] = ()


class TextDelta(msgspec.Struct, frozen=True, tag="text_delta"):
    """More text of one choice, with the tokens that made it."""

    choice: int
    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()


class ReasoningDelta(msgspec.Struct, frozen=True, tag="reasoning_delta"):
    """More of what one choice thinks before it answers."""

    choice: int
    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    signature: str | None = None


class ToolCallStarted(msgspec.Struct, frozen=True, kw_only=True, tag="tool_call_started"):
    """One choice begins its call number `index`."""

    choice: int
    index: int
    id: str
    name: str


class ToolCallDelta(msgspec.Struct, frozen=True, tag="tool_call_delta"):
    """More of a call's arguments, which are JSON."""

    choice: int
    index: int
    arguments: str


class ChoiceEnded(msgspec.Struct, frozen=True, tag="choice_ended"):
    """One choice is complete; `stop` is the stop string that ended it, where that is known."""

    choice: int
    reason: FinishReason
    stop: str | None = None


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """The whole request is complete; always the last event, exactly once. A failure raises MlxmError instead."""

    usage: Usage


Event = Started | TextDelta | ReasoningDelta | ToolCallStarted | ToolCallDelta | ChoiceEnded | Ended


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A model that can be asked by `name`; `target` is the one behind an alias."""

    name: str
    target: str | None = None
    created_s: int = 0
    """When it came, in unix seconds."""
    context_length: int | None = None
    is_loaded: bool = False


class Encoded(msgspec.Struct, frozen=True, kw_only=True):
    """The tokens of a prompt, and how many its model takes at most."""

    ids: tuple[int, ...]
    context_length: int | None = None


class Backend(Protocol):
    """Whatever can answer: a local model, a cloud, a server elsewhere.

    Closing the generator early cancels the request and frees all that it held.
    """

    def chat(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        """Answer `request`: Started first, Ended last."""
        ...

    def complete(self, request: CompletionRequest) -> AsyncGenerator[Event, None]:
        """Go on with a prompt, as it is: Started first, Ended last, and of the deltas only those of text."""
        ...


class Models(Protocol):
    """The models that can be asked, and their tokens."""

    async def list_models(self) -> tuple[ModelInfo, ...]:
        """Every one, by every name."""
        ...

    async def find_model(self, name: str) -> ModelInfo:
        """The one of that name; ModelNotFound with near names."""
        ...

    async def tokenize(self, request: ChatRequest | CompletionRequest, *, is_bare: bool = False) -> Encoded:
        """The tokens of a request's prompt; `is_bare` leaves out those that the tokenizer puts before a text."""
        ...

    async def detokenize(self, model: str, ids: tuple[int, ...]) -> str:
        """The text of token ids."""
        ...
