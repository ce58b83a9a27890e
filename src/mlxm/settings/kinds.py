"""The kinds of values that a setting can have, each with the words that say what it allows.

A kind is an annotated type: pydantic checks with it, and errors and docs quote its `Allowed`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, WithJsonSchema

_UNIT_BYTES = {
    "B": 1,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "TB": 1000**4,
    "KiB": 1024,
    "MiB": 1024**2,
    "GiB": 1024**3,
    "TiB": 1024**4,
}
_BYTES_BY_NAME = {"": 1, **{name.lower(): size for name, size in _UNIT_BYTES.items()}}
_SIZE = re.compile(r"(\d{1,20}(?:\.\d{1,20})?) ?([a-z]*)", re.ASCII | re.IGNORECASE)
_NAMED_LIBRARIES = ("auto", "none")


@dataclass(frozen=True, slots=True)
class Allowed:
    """What a kind allows, in words that follow "must be"."""

    words: str


def parse_bytes(size: object) -> int:
    """The number of bytes that `512MB`, `1.5 GiB` or a plain number means; ValueError when it means none."""
    if isinstance(size, int) and not isinstance(size, bool):
        return size
    found = _SIZE.fullmatch(size.strip()) if isinstance(size, str) else None
    unit_bytes = None if found is None else _BYTES_BY_NAME.get(found[2].lower())
    if found is None or unit_bytes is None:
        raise ValueError("not a size")
    num_bytes = Decimal(found[1]) * unit_bytes
    if num_bytes != int(num_bytes):
        raise ValueError("not a whole number of bytes")
    return int(num_bytes)


def format_bytes(num_bytes: int) -> str:
    """The shortest exact way to write a size, such as 512MB or 10MiB."""
    exact = [f"{num_bytes // unit}{name}" for name, unit in _UNIT_BYTES.items() if num_bytes % unit == 0]
    return min(reversed(exact), key=len) if num_bytes else "0B"


def _check_library(text: str) -> str:
    if text in _NAMED_LIBRARIES:
        return text
    path = Path(text).expanduser()
    if not path.is_absolute():
        raise ValueError("not an absolute path")
    return str(path)


ByteSize = Annotated[
    int,
    BeforeValidator(parse_bytes),
    Field(ge=1),
    PlainSerializer(format_bytes, return_type=str, when_used="json"),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1},
                {"type": "string", "pattern": r"^\d+(\.\d+)? ?([KkMmGgTt][Ii]?[Bb]|[Bb])?$"},
            ]
        }
    ),
    Allowed("a size such as 512MB, 10MiB or a number of bytes"),
]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False), Allowed("a number of seconds above 0")]
SecondsOrZero = Annotated[float, Field(ge=0, allow_inf_nan=False), Allowed("a number of seconds, 0 or more")]
Port = Annotated[int, Field(ge=0, le=65535), Allowed("a whole number from 0 to 65535")]
Address = Annotated[str, Field(pattern=r"^\S+$"), Allowed("an address or a host name")]
Library = Annotated[str, AfterValidator(_check_library), Allowed("auto, none or the absolute path of a library")]
