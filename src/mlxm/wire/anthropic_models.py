"""The list of models as Anthropic's clients read it, page by page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from mlxm.errors import InvalidRequest
from mlxm.types import ModelInfo
from mlxm.wire.kinds import Name
from mlxm.wire.tagged import decode_query

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


class PageAsked(Struct, frozen=True, kw_only=True):
    """Which of the models are wanted: at most `limit` of them, after or before one."""

    limit: Annotated[int, Meta(ge=1, le=MAX_LIMIT)] = USUAL_LIMIT
    after_id: Name | None = None
    before_id: Name | None = None

    def encode(self, infos: Sequence[ModelInfo]) -> bytes:
        """The answer to `GET /v1/models`; InvalidRequest for a name that is not in the list."""
        found = list(infos)
        if self.after_id is not None:
            found = found[_place(found, self.after_id, "after_id") + 1 :]
        if self.before_id is not None:
            found = found[: _place(found, self.before_id, "before_id")]
        page = found[: self.limit] if self.before_id is None or self.after_id is not None else found[-self.limit :]
        return msgspec.json.encode(
            ModelPage(
                data=tuple(map(Model.of, page)),
                has_more=len(found) > len(page),
                first_id=page[0].name if page else None,
                last_id=page[-1].name if page else None,
            )
        )


def read_page(query: Mapping[str, str]) -> PageAsked:
    """The page that an address asks for; what else stands in it is for others. InvalidRequest."""
    return decode_query(query, PageAsked)


def _place(infos: Sequence[ModelInfo], name: str, param: str) -> int:
    place = next((index for index, info in enumerate(infos) if info.name == name), None)
    if place is None:
        raise InvalidRequest(f"{param} names no model of the list.", param=param)
    return place
