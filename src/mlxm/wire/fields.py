"""What a request's fields may be: each acts, stands in a table, or is refused by its name.

Dialects keep their own tables; the rule and the translation of decoding errors are the same for all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec

from mlxm.errors import InvalidRequest, UnsupportedParameter

T = TypeVar("T")

RawFields = dict[str, msgspec.Raw]

_NULL = msgspec.Raw(b"null")
_AT_PATH = re.compile(r"^(?P<what>.*?)(?: - at (?:`key` in )?`\$(?P<path>.*)`)?$", re.DOTALL)
_MAX_NAME_LENGTH = 64


def decode(body: bytes, kind: type[T]) -> T:
    """The JSON `body` as `kind`, nothing converted; InvalidRequest names the field that does not fit."""
    with _as_invalid_request():
        return msgspec.json.decode(body, type=kind)


def split_fields(body: bytes) -> RawFields:
    """The fields of the JSON object `body`, their values still encoded."""
    with _as_invalid_request():
        body.decode()  # a value kept raw is not looked at, and bytes that are no text must not pass with it
        return msgspec.json.decode(body, type=RawFields)


def refuse_unknown(
    fields: Mapping[str, msgspec.Raw],
    *,
    known: frozenset[str],
    no_ops: Mapping[str, tuple[Any, ...]],
    tolerated: frozenset[str] = frozenset(),
    inside: str = "",
) -> tuple[str, ...]:
    """Raise UnsupportedParameter for the first field that would be dropped in silence; return the tolerated ones."""
    ignored = []
    for name, raw in fields.items():
        if name in known or raw == _NULL:
            continue
        if name in tolerated:
            ignored.append(name)
        elif not any(_is_same(decode(bytes(raw), object), value) for value in no_ops.get(name, ())):
            raise _unsupported(inside + _printable(name), is_known=name in no_ops)
    return tuple(ignored)


def read_object(raw: msgspec.Raw, place: str, *, max_bytes: int, max_depth: int) -> str:
    """The JSON object in `raw` as text; it may also come as a string that holds it. InvalidRequest otherwise."""
    value = decode(bytes(raw), object)
    text = value if isinstance(value, str) else bytes(raw).decode()
    if len(text.encode()) > max_bytes:
        raise InvalidRequest(f"{place} is over the limit of {max_bytes} bytes.", hint="Make it smaller.", param=place)
    if isinstance(value, str):
        value = _decode_inside(text, place)
    if not isinstance(value, dict):
        raise InvalidRequest(f"{place} is no JSON object.", param=place)
    if _is_deeper(value, max_depth):
        raise InvalidRequest(f"{place} is nested deeper than {max_depth}.", hint="Make it flatter.", param=place)
    return text


def _decode_inside(text: str, place: str) -> object:
    try:
        return decode(text.encode(), object)
    except InvalidRequest as error:
        raise InvalidRequest(f"{place} is a string that holds no JSON.", param=place) from error


def _is_deeper(value: object, max_depth: int) -> bool:
    level = [value]
    for _ in range(max_depth):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return False
    return True


def _inside(value: object) -> Iterable[object]:
    """The lists and objects right inside of one."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return (each for each in inner if isinstance(each, dict | list))


def _unsupported(name: str, *, is_known: bool) -> UnsupportedParameter:
    if is_known:
        return UnsupportedParameter(
            f"The parameter {name} is not supported yet with this value.", hint="Leave it out.", param=name
        )
    return UnsupportedParameter(
        f"There is no parameter {name}.", hint="Check its spelling, or leave it out.", param=name
    )


def _is_same(value: object, wanted: object) -> bool:
    """Whether two JSON values are equal; to Python True is 1, to JSON it is not."""
    return value == wanted and isinstance(value, bool) == isinstance(wanted, bool)


def _printable(name: str) -> str:
    """A name out of a request, fit to be shown."""
    shown = name if name.isprintable() else ascii(name)[1:-1]
    return shown if len(shown) <= _MAX_NAME_LENGTH else f"{shown[:_MAX_NAME_LENGTH]}…"


@contextmanager
def _as_invalid_request() -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise InvalidRequest("The body is not valid UTF-8.", hint="Send JSON encoded as UTF-8.") from error
    except RecursionError as error:
        raise InvalidRequest("The body is nested too deeply.", hint="Send a flatter JSON document.") from error
    except msgspec.ValidationError as error:
        raise _misfit(str(error)) from error
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.", hint="Send one JSON object.") from error


def _misfit(said: str) -> InvalidRequest:
    """What msgspec complains about, with the place as other APIs write it: `messages[0].role`."""
    found = _AT_PATH.match(said)
    what, path = (said, None) if found is None else (found["what"], found["path"])
    place = _printable(path.lstrip(".")) if path else None
    return InvalidRequest(f"{place}: {what}." if place else f"The body does not fit: {what}.", param=place)
