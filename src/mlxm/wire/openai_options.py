"""What OpenAI's requests for text have in common, with the usual extensions of servers for local models.

Each field acts, and what may be sent although it changes nothing stands in a table.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from mlxm.errors import InvalidRequest
from mlxm.types import AnswerOptions, Sampling
from mlxm.wire.kinds import (
    Bias,
    Json,
    Name,
    Number64,
    NumChoices,
    NumTokensOrNone,
    Penalty,
    Share,
    Source,
    StopText,
    Temperature,
    Text,
    TokenId,
)
from mlxm.wire.openai_grammar import (
    GrammarAsked,
    JsonSchema,
    JsonSchemaFormat,
    ResponseFormat,
    StructuredOutputs,
    choose_grammar,
)

# Values which ask for what happens anyway; any other value of these would be dropped in silence, so it is refused.
NO_OPS: dict[str, tuple[Any, ...]] = {
    "bad_words": ([],),
    "cache_salt": (),
    "early_stopping": (False,),
    "include_stop_str_in_output": (False,),
    "keep_alive": (),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "moderation": (),
    "prompt_logprobs": (),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True, False),
    "store": (False,),
    "truncate_prompt_tokens": (-1,),
    "use_beam_search": (False,),
    "xtc_probability": (0,),
}

# What clients send for their own books: it can change nothing here, and the answer's header names it.
TOLERATED = frozenset(
    {
        "metadata",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "user",
    }
)

HIGH, NORMAL, LOW = range(3)
_LEVELS = {"high": HIGH, "normal": NORMAL, "low": LOW}


class StreamOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a stream carries beside the text."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None
    continuous_usage_stats: Literal[False] | None = None


class TextRequest(Struct, frozen=True, kw_only=True):
    """The fields that act, whether the prompt is a conversation or a text."""

    model: Name
    max_tokens: NumTokensOrNone | None = None
    n: NumChoices | None = None
    stop: StopText | Annotated[tuple[StopText, ...], Meta(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Share | None = None
    seed: Number64 | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    logit_bias: Annotated[dict[TokenId, Bias], Meta(max_length=1024)] | None = None
    min_tokens: NumTokensOrNone | None = None
    ignore_eos: bool | None = None
    stop_token_ids: Annotated[tuple[TokenId, ...], Meta(max_length=1024)] | None = None

    response_format: ResponseFormat | None = None
    guided_json: Json = field(default_factory=Json)
    guided_regex: Source | None = None
    guided_choice: Annotated[tuple[Text, ...], Meta(min_length=1, max_length=1024)] | None = None
    guided_grammar: Source | None = None
    structured_outputs: StructuredOutputs | None = None

    service_tier: Literal["auto", "default", "flex"] | None = None
    priority: Literal[0, 1, 2, "high", "normal", "low"] | None = None

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def num_choices(self) -> int:
        """How many answers are wanted to a prompt."""
        return 1 if self.n is None else self.n

    def ignored(self) -> tuple[str, ...]:
        """Fields inside of others that change nothing here."""
        match self.response_format:
            case JsonSchemaFormat(json_schema=JsonSchema(description=str())):
                return ("response_format.json_schema.description",)
            case _:
                return ()

    def check(self) -> None:
        """Refuse fields that are good alone and make no sense together."""
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("stream_options needs stream to be true.", param="stream_options")
        limit = self._max_tokens()
        if self.min_tokens is not None and limit is not None and self.min_tokens > limit:
            raise InvalidRequest(
                f"min_tokens is {self.min_tokens}, more than the {limit} tokens that the answer may have.",
                param="min_tokens",
            )

    def options(self, request_id: str, *, is_batch: bool, num_logprobs: int | None) -> AnswerOptions:
        """The neutral form of what stands here; `num_logprobs` is spelled differently in each kind of request."""
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        return AnswerOptions(
            request_id=request_id,
            model=self.model,
            sampling=self._sampling(),
            max_tokens=self._max_tokens(),
            stop=() if stop is None else stop,
            stop_ids=() if self.stop_token_ids is None else self.stop_token_ids,
            num_choices=self.num_choices,
            priority=self._priority(is_batch=is_batch),
            num_logprobs=num_logprobs,
            grammar=choose_grammar(
                GrammarAsked(
                    response_format=self.response_format,
                    json=self.guided_json,
                    regex=self.guided_regex,
                    choice=self.guided_choice,
                    grammar=self.guided_grammar,
                    structured_outputs=self.structured_outputs,
                )
            ),
        )

    def _max_tokens(self) -> int | None:
        return self.max_tokens

    def _sampling(self) -> Sampling:
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=None if self.top_k is None else max(self.top_k, 0),
            min_p=self.min_p,
            seed=self.seed,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=0.0 if self.presence_penalty is None else self.presence_penalty,
            frequency_penalty=0.0 if self.frequency_penalty is None else self.frequency_penalty,
            logit_bias=() if self.logit_bias is None else tuple(self.logit_bias.items()),
            min_tokens=0 if self.min_tokens is None else self.min_tokens,
            ignore_eos=bool(self.ignore_eos),
        )

    def _priority(self, *, is_batch: bool) -> int:
        """What the route and the request say; a request may ask for less than its route has, and never for more."""
        usual = LOW if is_batch or self.service_tier == "flex" else NORMAL
        if self.priority is None:
            return usual
        asked = _LEVELS[self.priority] if isinstance(self.priority, str) else self.priority
        if usual == LOW and asked < LOW:
            raise InvalidRequest("Requests of this kind have low priority.", hint="Leave it out.", param="priority")
        return asked


def fields_of(options: AnswerOptions) -> dict[str, Any]:
    """The fields by name, for a request that has more."""
    return msgspec.structs.asdict(options)
