"""The little language of `--filter` and `--sort`: a field, a sign and a value, such as size>4GB or quant=4bit."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from mlxm.errors import InvalidRequest
from mlxm.settings.sizes import parse_bytes

ItemT = TypeVar("ItemT")
Value = str | float | None

_FILTER = re.compile(r"\s*([a-z]+)\s*(<=|>=|!=|=|<|>)\s*(.+?)\s*")
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([kKmMbB]?)")
_AGE = re.compile(r"(\d+(?:\.\d+)?)\s*([mhdwyMHDWY])")
_SECONDS = {"m": 60.0, "h": 3_600.0, "d": 86_400.0, "w": 604_800.0, "y": 31_536_000.0}
_FACTORS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9}
_TOKENS = 1024.0
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    "=": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    ">": operator.gt,
}


@dataclass(frozen=True, slots=True)
class Field(Generic[ItemT]):
    """Something that items can be chosen and ordered by; `parse` reads the value that a number is compared to."""

    read: Callable[[ItemT], Value]
    parse: Callable[[str], float] | None = None


def read_size(text: str) -> float:
    """4GB as bytes; ValueError when it is no size."""
    return float(parse_bytes(text))


def read_tokens(text: str) -> float:
    """32k as tokens, the way contexts are counted; ValueError when it is no number."""
    amount, unit = _read_amount(text)
    return amount * {"": 1.0, "k": _TOKENS, "m": _TOKENS**2}[unit]


def read_count(text: str) -> float:
    """7B as a number; ValueError when it is none."""
    amount, unit = _read_amount(text)
    return amount * _FACTORS[unit]


def read_age(text: str) -> float:
    """30d as seconds; ValueError when it is no time."""
    found = _AGE.fullmatch(text)
    if found is None:
        raise ValueError(text)
    return float(found[1]) * _SECONDS[found[2].lower()]


def choose(items: Iterable[ItemT], filters: Sequence[str], fields: Mapping[str, Field[ItemT]]) -> list[ItemT]:
    """The items that fit every filter; what an item does not say fits none. InvalidRequest for one without sense."""
    tests = [_read_filter(text, fields) for text in filters]
    return [item for item in items if all(test(item) for test in tests)]


def order(items: Iterable[ItemT], sort: str, fields: Mapping[str, Field[ItemT]]) -> list[ItemT]:
    """The items by a field, `:desc` turning it round; those that do not say come last either way."""
    name, _, direction = sort.partition(":")
    if direction not in ("", "asc", "desc"):
        raise InvalidRequest(f"--sort {sort} ends in neither :asc nor :desc.", param="sort")
    read = _find_field(name, fields).read
    known = [(value, item) for item in items if (value := read(item)) is not None]
    ordered = sorted(known, key=lambda pair: _sort_key(pair[0]), reverse=direction == "desc")
    return [item for _, item in ordered] + [item for item in items if read(item) is None]


def _sort_key(value: Value) -> tuple[float, str]:
    return (0.0, value.casefold()) if isinstance(value, str) else (value if value is not None else 0.0, "")


def _read_filter(text: str, fields: Mapping[str, Field[ItemT]]) -> Callable[[ItemT], bool]:
    parts = _FILTER.fullmatch(text)
    if parts is None:
        raise InvalidRequest(
            f"--filter {text!r} is not understood.",
            hint="Write a field, a sign and a value: 'size>4GB'.",
            param="filter",
        )
    name, sign, wanted = parts.groups()
    field = _find_field(name, fields)
    if field.parse is not None:
        return _compare(field, sign, _parse(name, wanted, field.parse))
    if sign not in ("=", "!="):
        raise InvalidRequest(f"{name} is text: compare it with = or !=.", param="filter")
    return lambda item: (_is_like(field.read(item), wanted)) == (sign == "=")


def _compare(field: Field[ItemT], sign: str, wanted: float) -> Callable[[ItemT], bool]:
    def fits(item: ItemT) -> bool:
        value = field.read(item)
        return isinstance(value, float | int) and _COMPARE[sign](value, wanted)

    return fits


def _is_like(value: Value, wanted: str) -> bool:
    return isinstance(value, str) and value.casefold() == wanted.casefold()


def _parse(name: str, text: str, parse: Callable[[str], float]) -> float:
    try:
        return parse(text)
    except (ValueError, KeyError) as error:
        raise InvalidRequest(f"{text!r} is no {name}.", hint="Write 4GB, 32k, 7B or 30d.", param="filter") from error


def _find_field(name: str, fields: Mapping[str, Field[ItemT]]) -> Field[ItemT]:
    if name not in fields:
        raise InvalidRequest(f"There is no field {name!r}.", hint=f"There is {', '.join(fields)}.", param="filter")
    return fields[name]


def _read_amount(text: str) -> tuple[float, str]:
    found = _AMOUNT.fullmatch(text)
    if found is None:
        raise ValueError(text)
    return float(found[1]), found[2].lower()
