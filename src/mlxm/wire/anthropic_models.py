"""The list of models as Anthropic's clients read it, page by page."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, Literal

import msgspec
from msgspec import Struct

from mlxm.errors import InvalidRequest
from mlxm.types import ModelInfo

VERSION_HEADER: Final = "anthropic-version"
USUAL_LIMIT: Final = 20
MAX_LIMIT: Final = 1000


class Model(Struct, frozen=True, kw_only=True):
    """A model that can be asked."""

    type: Literal["model"] = "model"
    id: str
    display_name: str
    created_at: str
    lifecycle: Literal["active"] = "active"
    max_input_tokens: int | None
    max_tokens: int | None
    capabilities: None = None

    @classmethod
    def of(cls, info: ModelInfo) -> Model:
        """The neutral facts in this dialect's words."""
        return cls(
            id=info.name,
            display_name=info.name,
            created_at=datetime.fromtimestamp(info.created_s, UTC).isoformat().replace("+00:00", "Z"),
            max_input_tokens=info.context_length,
            max_tokens=info.context_length,
        )


class ModelPage(Struct, frozen=True, kw_only=True):
    """Some of the models."""

    data: tuple[Model, ...]
    has_more: bool
    first_id: str | None
    last_id: str | None


def model(info: ModelInfo) -> bytes:
    """The answer to `GET /v1/models/{id}`."""
    return msgspec.json.encode(Model.of(info))


def model_page(
    infos: Sequence[ModelInfo], *, limit: int = USUAL_LIMIT, after: str | None = None, before: str | None = None
) -> bytes:
    """The answer to `GET /v1/models`: at most `limit` of them, after or before one; InvalidRequest."""
    if not 1 <= limit <= MAX_LIMIT:
        raise InvalidRequest(f"limit is to be from 1 to {MAX_LIMIT}.", param="limit")
    found = list(infos)
    if after is not None:
        found = found[_place(found, after, "after_id") + 1 :]
    if before is not None:
        found = found[: _place(found, before, "before_id")]
    page = found[-limit:] if before is not None and after is None else found[:limit]
    return msgspec.json.encode(
        ModelPage(
            data=tuple(map(Model.of, page)),
            has_more=len(found) > len(page),
            first_id=page[0].name if page else None,
            last_id=page[-1].name if page else None,
        )
    )


def _place(infos: Sequence[ModelInfo], name: str, param: str) -> int:
    place = next((index for index, info in enumerate(infos) if info.name == name), None)
    if place is None:
        raise InvalidRequest(f"{param} names no model of the list.", param=param)
    return place
