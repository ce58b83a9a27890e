"""What the fields of requests may hold: no number, text or list of a request is without bounds.

Dialects build their structs of these, and a test walks the structs for anything that is not bounded.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Raw

MAX_TOKENS = 2**31 - 1
MAX_TEXT_LENGTH = 64 * 1024 * 1024
MAX_ITEMS = 100_000
MAX_CHOICES = 128
MAX_LIKELY = 20

Text = Annotated[str, Meta(max_length=MAX_TEXT_LENGTH)]
Source = Annotated[str, Meta(min_length=1, max_length=64 * 1024)]
"""A grammar, a schema or an expression."""
Name = Annotated[str, Meta(min_length=1, max_length=256)]
CallId = Annotated[str, Meta(min_length=1, max_length=256)]
FunctionName = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[\w.:/-]+$")]
StopText = Annotated[str, Meta(min_length=1, max_length=1024)]
Index = Annotated[int, Meta(ge=0, le=MAX_ITEMS)]
NumTokens = Annotated[int, Meta(ge=1, le=MAX_TOKENS)]
NumTokensOrNone = Annotated[int, Meta(ge=0, le=MAX_TOKENS)]
TokenId = Annotated[int, Meta(ge=0, le=MAX_TOKENS)]
TokenIds = Annotated[tuple[TokenId, ...], Meta(max_length=MAX_TEXT_LENGTH)]
Number64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Share = Annotated[float, Meta(ge=0, le=1)]
NonZeroShare = Annotated[float, Meta(gt=0, le=1)]
Temperature = Annotated[float, Meta(ge=0, le=2)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
NumChoices = Annotated[int, Meta(ge=1, le=MAX_CHOICES)]
NumLikely = Annotated[int, Meta(ge=0, le=MAX_LIKELY)]

Json = Raw
"""Any JSON value, as it was written; what holds one bounds its depth and size where it is read."""
_NOTHING = (Raw(), Raw(b"null"))


def is_given(value: Json) -> bool:
    """Whether a field is there and not null, which such a field cannot say by its type."""
    return value not in _NOTHING
