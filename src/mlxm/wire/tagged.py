"""Values of a request that say by a field `type` what they are, where not every type is known and some say nothing.

They are kept as they were written until their type is looked at, and errors name the place where they stood.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Struct

from mlxm.errors import InvalidRequest
from mlxm.wire.fields import decode
from mlxm.wire.kinds import Json

T = TypeVar("T")


class _Typed(Struct):
    type: Annotated[str, Meta(max_length=128)] | None = None


def type_of(value: Json, place: str) -> str | None:
    """What an object says it is; None when it says nothing. InvalidRequest when it is no object."""
    return decode_at(value, _Typed, place).type


def decode_at(value: Json, kind: type[T], place: str) -> T:
    """`value` as `kind`; InvalidRequest names what does not fit by its place in the whole request."""
    try:
        return decode(bytes(value), kind)
    except InvalidRequest as error:
        param = place if error.param is None else f"{place}.{error.param}"
        raise InvalidRequest(f"In {place}: {error.message}", hint=error.hint, param=param) from error


def shown_type(name: str) -> str:
    """A type out of a request, fit for a header."""
    return "".join(letter for letter in name if letter.isascii() and (letter.isalnum() or letter in "_-."))


def decode_query(query: Mapping[str, str], kind: type[T]) -> T:
    """What follows the question mark of an address; InvalidRequest names what does not fit."""
    try:
        return msgspec.convert(dict(query), kind, strict=False)
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at `$.")
        raise InvalidRequest(f"The address does not fit: {what}.", param=path.rstrip("`") or None) from error
