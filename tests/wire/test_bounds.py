import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

import msgspec
import pytest

from mlxm.wire.anthropic_messages import MessagesRequest
from mlxm.wire.openai_chat import ChatCompletionRequest
from mlxm.wire.openai_completions import TextCompletionRequest
from mlxm.wire.openai_models import DetokenizeRequest, TokenizeRequest
from mlxm.wire.openai_responses import ResponsesRequest

REQUESTS = [
    ChatCompletionRequest,
    TextCompletionRequest,
    TokenizeRequest,
    DetokenizeRequest,
    MessagesRequest,
    ResponsesRequest,
]


def unbounded(kind: Any, path: str, bounds: msgspec.Meta | None = None) -> Iterator[str]:
    """The places in a type where a client may send as much as it likes."""
    origin = get_origin(kind)
    if origin is Annotated:
        inner, meta = get_args(kind)
        yield from unbounded(inner, path, meta)
    elif origin in (types.UnionType, typing.Union):
        for inner in get_args(kind):
            yield from unbounded(inner, path)
    elif isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        for field in msgspec.structs.fields(kind):
            yield from unbounded(field.type, f"{path}.{field.encode_name}")
    elif origin in (tuple, dict):
        for inner in get_args(kind):
            if inner is not Ellipsis:
                yield from unbounded(inner, f"{path}[]")
        yield from unbounded(origin, path, bounds)
    elif not is_bounded(kind, bounds):
        yield f"{path}: {kind.__name__}"


def is_bounded(kind: Any, bounds: msgspec.Meta | None) -> bool:
    """Whether a type without inner types has an end; JSON as it was written is bounded where it is read."""
    if kind in (bool, type(None), msgspec.Raw) or get_origin(kind) is typing.Literal:
        return True
    if kind in (str, tuple, dict):
        return bounds is not None and bounds.max_length is not None
    if kind in (int, float):
        return bounds is not None and None not in (_first(bounds.ge, bounds.gt), _first(bounds.le, bounds.lt))
    return False


def _first(one: float | None, other: float | None) -> float | None:
    return other if one is None else one


@pytest.mark.parametrize("request_type", REQUESTS)
def test_every_field_of_a_request_is_bounded(request_type: Any) -> None:
    """A bare number, string or list in a request is a way to ask for too much."""
    assert list(unbounded(request_type, "request")) == []


def test_bounds_are_really_looked_for() -> None:
    """The walk above finds what it is for."""

    class Careless(msgspec.Struct):
        number: int
        texts: tuple[str, ...] | None = None
        table: dict[int, Annotated[str, msgspec.Meta(max_length=3)]] | None = None

    assert list(unbounded(Careless, "x")) == [
        "x.number: int",
        "x.texts[]: str",
        "x.texts: tuple",
        "x.table[]: int",
        "x.table: dict",
    ]
