"""What stands in every answer of OpenAI's text routes: its heading, its usage, its tokens as text."""

from __future__ import annotations

import math
from typing import Final

from msgspec import UNSET, Struct, UnsetType

from mlxm.types import Usage

UNLIKELY: Final = -9999.0
"""Stands for a probability of nought, whose logarithm JSON has no number for."""


class PromptTokensDetails(Struct, frozen=True):
    """How much of the prompt was known already."""

    cached_tokens: int


class CompletionTokensDetails(Struct, frozen=True):
    """How much of the answer was thought rather than said."""

    reasoning_tokens: int


class CompletionUsage(Struct, frozen=True, kw_only=True):
    """Tokens of the whole request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | UnsetType = UNSET

    @classmethod
    def of(cls, usage: Usage) -> CompletionUsage:
        """The neutral usage in this dialect's words."""
        return cls(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            total_tokens=usage.prompt_tokens + usage.completion_tokens,
            prompt_tokens_details=PromptTokensDetails(usage.cached_tokens),
            completion_tokens_details=(
                CompletionTokensDetails(usage.reasoning_tokens) if usage.reasoning_tokens else UNSET
            ),
        )


class Heading(Struct, frozen=True, kw_only=True):
    """What stands at the head of every answer and every chunk of it; `created` in unix seconds."""

    id: str
    created: int
    model: str

    @classmethod
    def of(cls, kind: str, request_id: str, model: str, created: int) -> Heading:
        """The heading of the answer to a request; `kind` is how ids of its kind begin."""
        return cls(id=f"{kind}-{request_id.removeprefix('req_')}", created=created, model=model)


def shown_token(raw: bytes) -> str:
    """A token as text; one that is no text alone, as its bytes."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def finite(logprob: float) -> float:
    """A logprob that JSON can hold."""
    return logprob if math.isfinite(logprob) else UNLIKELY
