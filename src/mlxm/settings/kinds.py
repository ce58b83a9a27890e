"""The kinds of values that a setting can have, each with the words that say what it allows.

A kind is an annotated type: pydantic checks with it, and errors and docs quote its `Allowed`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, WithJsonSchema

from mlxm.settings.sizes import format_bytes, parse_bytes, parse_share

_NAMED_LIBRARIES = ("auto", "none")


@dataclass(frozen=True, slots=True)
class Allowed:
    """What a kind allows, in words that follow "must be"."""

    words: str


def _check_library(text: str) -> str:
    if text in _NAMED_LIBRARIES:
        return text
    path = Path(text).expanduser()
    if not path.is_absolute():
        raise ValueError("not an absolute path")
    return str(path)


def _check_share(text: str) -> str:
    _, num_bytes = parse_share(text)
    if num_bytes is not None and num_bytes < 1:
        raise ValueError("not a size above 0")
    return text.strip()


def _check_reserve(text: str) -> str:
    if text != "auto":
        parse_bytes(text)
    return text


def _check_names(names: tuple[str, ...]) -> tuple[str, ...]:
    if not all(name.strip() for name in names):
        raise ValueError("an empty name")
    return names


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
BodySize = Annotated[
    ByteSize,
    Field(le=32 * 1024**2),  # half of what a frame between processes carries, in which a body grows a little
    Allowed("a size of at most 32MiB, such as 512KB, 10MiB or a number of bytes"),
]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False), Allowed("a number of seconds above 0")]
SecondsOrZero = Annotated[float, Field(ge=0, allow_inf_nan=False), Allowed("a number of seconds, 0 or more")]
Port = Annotated[int, Field(ge=0, le=65535), Allowed("a whole number from 0 to 65535")]
Address = Annotated[str, Field(pattern=r"^\S+$"), Allowed("an address or a host name")]
Library = Annotated[str, AfterValidator(_check_library), Allowed("auto, none or the absolute path of a library")]
Count = Annotated[int, Field(ge=1, le=1_000_000), Allowed("a whole number of at least 1")]
HostNames = Annotated[
    tuple[Annotated[str, Field(pattern=r"^(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})$")], ...],
    Allowed('a list of host names without ports, such as ["mac-studio.local"]'),
]
Origins = Annotated[
    tuple[Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9+.-]*://[^/\s]+$")], ...],
    Allowed('a list of origins, such as ["http://localhost:3000"]'),
]
CountOrZero = Annotated[int, Field(ge=0), Allowed("a whole number, 0 or more")]
MemoryShare = Annotated[
    str, AfterValidator(_check_share), Allowed("a percentage such as 80%, or a size such as 48GB or 48GiB")
]
Reserve = Annotated[str, AfterValidator(_check_reserve), Allowed("auto, or a size such as 6GB")]
ModelNames = Annotated[
    tuple[str, ...], AfterValidator(_check_names), Allowed('a list of names such as ["mlxm/tiny"], or []')
]
