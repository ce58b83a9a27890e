"""OpenAI's completions: what `POST /v1/completions` takes, prompts with no template around them.

Pure translation, from bytes to neutral requests; `openai_completions_answers` has the way back.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from msgspec import Meta, Struct

from mlxm.errors import InvalidRequest
from mlxm.types import CompletionRequest
from mlxm.wire import openai_options
from mlxm.wire.fields import decode, refuse_unknown, split_fields
from mlxm.wire.kinds import MAX_TEXT_LENGTH, NumChoices, NumLikely, Text, TokenId, TokenIds
from mlxm.wire.openai_options import TextRequest, fields_of

USUAL_MAX_TOKENS: Final = 16
"""How long an answer is when the request does not say: so it is documented, and so clients expect it."""
MAX_PROMPTS: Final = 1024
MAX_ANSWERS: Final = 2048

# Values which ask for what happens anyway; any other value of these would be dropped in silence, so it is refused.
NO_OPS: dict[str, tuple[Any, ...]] = {**openai_options.NO_OPS, "add_special_tokens": (True,)}
TOLERATED = openai_options.TOLERATED

Prompt = str | tuple[int, ...]


class TextCompletionRequest(TextRequest, frozen=True, kw_only=True):
    """The fields that act."""

    prompt: Text | Annotated[tuple[Text | TokenId | TokenIds, ...], Meta(min_length=1, max_length=MAX_TEXT_LENGTH)]
    suffix: Text | None = None
    echo: bool | None = None
    logprobs: NumLikely | None = None
    best_of: NumChoices | None = None

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """The prompts, each a text or token ids."""
        if isinstance(self.prompt, str):
            return (self.prompt,)
        ids = tuple(each for each in self.prompt if isinstance(each, int))
        if ids:
            _check_alike(len(ids) == len(self.prompt))
            return (ids,)
        several = tuple(each for each in self.prompt if not isinstance(each, int))
        _check_alike(len({isinstance(each, str) for each in several}) == 1)
        return several

    @property
    def num_tried(self) -> int:
        """How many answers to a prompt are made, of which the best are kept."""
        return self.num_choices if self.best_of is None else self.best_of

    def check(self) -> None:
        """Refuse fields that are good alone and make no sense together."""
        super().check()
        if self.max_tokens == 0 and not self.echo:
            raise InvalidRequest("max_tokens is 0, so there would be no answer.", param="max_tokens")
        if self.num_tried < self.num_choices:
            raise InvalidRequest("best_of is less than n.", param="best_of")
        if self.num_tried > self.num_choices and self.stream:
            raise InvalidRequest("best_of cannot be streamed: the best is known at the end.", param="best_of")
        prompts = self.prompts
        if any(not prompt for prompt in prompts if not isinstance(prompt, str)):
            raise InvalidRequest("A prompt has no tokens.", param="prompt")
        if len(prompts) > MAX_PROMPTS or len(prompts) * self.num_tried > MAX_ANSWERS:
            raise InvalidRequest(
                f"There are {len(prompts)} prompts for {self.num_tried} answers each; {MAX_PROMPTS} prompts and "
                f"{MAX_ANSWERS} answers are the limit.",
                hint="Send several requests.",
                param="prompt",
            )

    def to_completions(self, request_id: str, *, is_batch: bool = False) -> tuple[CompletionRequest, ...]:
        """The neutral form: one request for each prompt, with an id of its own when there are several."""
        options = fields_of(self.options(request_id, is_batch=is_batch, num_logprobs=self._num_logprobs()))
        options["num_choices"] = self.num_tried
        prompts = self.prompts
        ids = [request_id] if len(prompts) == 1 else [f"{request_id}.{index}" for index in range(len(prompts))]
        return tuple(
            CompletionRequest(
                **{**options, "request_id": each_id},
                prompt=prompt,
                suffix=self.suffix or None,
                echoes=bool(self.echo),
            )
            for each_id, prompt in zip(ids, prompts, strict=True)
        )

    def _max_tokens(self) -> int | None:
        return USUAL_MAX_TOKENS if self.max_tokens is None else self.max_tokens

    def _num_logprobs(self) -> int | None:
        """The best answers can be told only by their logprobs."""
        return 0 if self.logprobs is None and self.num_tried > self.num_choices else self.logprobs


def _check_alike(are_alike: bool) -> None:  # noqa: FBT001  # it is the question itself
    if not are_alike:
        raise InvalidRequest("prompt is a text, texts, token ids or lists of token ids, not a mixture.", param="prompt")


class Asked(Struct, frozen=True):
    """A request that was understood, and the names of its fields that change nothing."""

    request: TextCompletionRequest
    ignored: tuple[str, ...] = ()


def read_request(body: bytes) -> Asked:
    """Decode a body strictly; InvalidRequest or UnsupportedParameter names what cannot be served."""
    known = frozenset(TextCompletionRequest.__struct_fields__)
    ignored = refuse_unknown(split_fields(body), known=known, no_ops=NO_OPS, tolerated=TOLERATED)
    request = decode(body, TextCompletionRequest)
    request.check()
    return Asked(request, (*ignored, *request.ignored()))
