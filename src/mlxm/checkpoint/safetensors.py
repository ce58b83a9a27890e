"""The header of a safetensors file, checked in full before any library that trusts it sees the file.

8 bytes      length bytes             the rest
┌────────┬──────────────────────────┬───────────────────────────────┐
│ length │ JSON: name → dtype,      │ data: every byte belongs to   │
│        │ shape, [begin, end)      │ exactly one tensor            │
└────────┴──────────────────────────┴───────────────────────────────┘
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any, Final

import msgspec

from mlxm.checkpoint.files import FETCH_AGAIN, open_regular, printable, read_object
from mlxm.errors import ModelBroken

MAX_HEADER_BYTES: Final = 100_000_000
_LENGTH_BYTES: Final = 8
_MAX_DIMENSION: Final = 2**31 - 1
"""A dimension in mlx is a 32-bit number."""
_MAX_RANK: Final = 32
_BITS: Final = {
    "BOOL": 8,
    **dict.fromkeys(("U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
_KEYS: Final = {"dtype", "shape", "data_offsets"}
_SHARD: Final = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})\.safetensors", re.ASCII)
_MAX_SHARDS: Final = 10_000
INDEX_NAME: Final = "model.safetensors.index.json"
WEIGHTS_PATTERN: Final = "model*.safetensors"


class Tensor(msgspec.Struct, frozen=True):
    """One tensor of a file; `begin` and `end` count from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def num_bytes(self) -> int:
        """Its size in the file."""
        return self.end - self.begin

    @property
    def num_values(self) -> int:
        """How many numbers of its dtype it holds."""
        return prod(self.shape)


class Header(msgspec.Struct, frozen=True):
    """A whole header, valid for the file that it was read from."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


class _Invalid(Exception):
    """What is wrong, before the file's name is known."""


def read_header(path: Path) -> Header:
    """The header of the file at `path`; ModelBroken says what is wrong with which file."""
    try:
        with open_regular(path) as (file, size):
            length = _header_length(file.read(_LENGTH_BYTES), size)
            return _parse(file.read(length), size - _LENGTH_BYTES - length)
    except FileNotFoundError as error:
        raise ModelBroken(f"{printable(path)} is missing.", hint=FETCH_AGAIN) from error
    except _Invalid as error:
        raise ModelBroken(f"{printable(path)} is damaged: {error}.", hint=FETCH_AGAIN) from error


def parse_header(content: bytes, data_bytes: int, name: str) -> Header:
    """Check the JSON of a header against the number of bytes that follow it; `name` is for ModelBroken's message."""
    try:
        return _parse(content, data_bytes)
    except _Invalid as error:
        raise ModelBroken(f"{name} is damaged: {error}.", hint=FETCH_AGAIN) from error


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The files that mlx-lm loads; ModelBroken when there is none, or one that the index or a shard's name tells of.

    They are found, not read: `read_header` checks each.
    """
    present = _present(folder)
    index = read_object(folder / INDEX_NAME)
    named = set() if index is None else indexed_files(index, folder / INDEX_NAME)
    missing = (named | expected_shards(present)) - present
    if missing:
        first = ", ".join(sorted(missing)[:3])
        raise ModelBroken(f"{printable(folder)} lacks {len(missing)} weight files: {first}.", hint=FETCH_AGAIN)
    if not present:
        raise ModelBroken(f"{printable(folder)} holds no {WEIGHTS_PATTERN}.", hint=FETCH_AGAIN)
    return tuple(folder / name for name in sorted(present))


def has_weights(folder: Path) -> bool:
    """Whether a folder holds or promises a weight file that mlx-lm loads; ModelBroken when it cannot be read."""
    return bool(_present(folder)) or (folder / INDEX_NAME).exists()


def _present(folder: Path) -> set[str]:
    """Names of weight files that lie in a folder; a link to nothing is no file."""
    try:
        return {path.name for path in folder.iterdir() if path.match(WEIGHTS_PATTERN) and path.exists()}
    except OSError as error:
        raise ModelBroken(f"{printable(folder)} cannot be read: {error.strerror}.", hint=FETCH_AGAIN) from error


def indexed_files(index: dict[str, Any], path: Path) -> set[str]:
    """The names of the weight files that an index, read from `path`, tells of; raises ModelBroken."""
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict):
        raise ModelBroken(f"{printable(path)} has no weight_map.", hint=FETCH_AGAIN)
    names = set(weight_map.values()) if all(isinstance(name, str) for name in weight_map.values()) else {""}
    if not all(_is_file_name(name) for name in names):
        raise ModelBroken(f"{printable(path)} names weight files that are no file names.", hint=FETCH_AGAIN)
    return names


def expected_shards(names: Iterable[str]) -> set[str]:
    """All names of a series of which `names` holds some: each says how many there are."""
    expected: set[str] = set()
    for name in names:
        shard = _SHARD.fullmatch(name)
        if shard is not None and int(shard["count"]) <= _MAX_SHARDS and name not in expected:
            stem, count = shard["stem"], shard["count"]
            expected |= {f"{stem}-{place:05}-of-{count}.safetensors" for place in range(1, int(count) + 1)}
    return expected


def _is_file_name(name: str) -> bool:
    return name.endswith(".safetensors") and name.isprintable() and "/" not in name and "\\" not in name


def _header_length(prefix: bytes, size: int) -> int:
    if len(prefix) < _LENGTH_BYTES:
        raise _Invalid(f"it has {size} bytes, too few for a safetensors file")
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER_BYTES:
        raise _Invalid(f"its header would be {length} bytes long, more than {MAX_HEADER_BYTES}")
    if length > size - _LENGTH_BYTES:
        raise _Invalid(f"its header would be {length} bytes long, but the file has {size}")
    return length


def _parse(content: bytes, data_bytes: int) -> Header:
    entries = _entries(content)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _Invalid("its __metadata__ is not made of texts")
    tensors = {name: _tensor(name, entry) for name, entry in entries.items()}
    _check_cover(tensors, data_bytes)
    return Header(tensors, metadata)


def _entries(content: bytes) -> dict[str, Any]:
    if not content.startswith(b"{"):
        raise _Invalid("it does not begin as a safetensors file")
    try:
        entries: dict[str, Any] = json.loads(
            content.decode(), object_pairs_hook=_without_repeats, parse_int=_natural_number
        )
        "".join(entries).encode()  # half a surrogate pair is no text, though Python reads it
    except (ValueError, RecursionError) as error:
        raise _Invalid("its header is not valid JSON") from error
    return entries


def _natural_number(text: str) -> int:
    """Other readers take -0 for a fraction."""
    if text.startswith("-"):
        raise _Invalid("its header has a negative number")
    return int(text)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of a repeated key some readers take the first value and others the last, so that a check would prove nothing."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Invalid("its header repeats a key")
    return found


def _tensor(name: str, entry: object) -> Tensor:
    if not isinstance(entry, dict) or entry.keys() != _KEYS:
        raise _Invalid(f"its entry {_shown(name)} does not consist of dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise _Invalid(f"the dtype of {_shown(name)} is not known: {_shown(dtype)}")
    if not _are_counts(shape) or len(shape) > _MAX_RANK or any(size > _MAX_DIMENSION for size in shape):
        raise _Invalid(f"the shape of {_shown(name)} is none: {_shown(shape)}")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:  # noqa: PLR2004 - begin and end
        raise _Invalid(f"the offsets of {_shown(name)} are none: {_shown(offsets)}")
    if prod(shape) * _BITS[dtype] != (offsets[1] - offsets[0]) * 8:
        raise _Invalid(f"{_shown(name)} has {offsets[1] - offsets[0]} bytes, which is not {dtype} × {_shown(shape)}")
    return Tensor(dtype, tuple(shape), offsets[0], offsets[1])


def _check_cover(tensors: dict[str, Tensor], data_bytes: int) -> None:
    """One after the other, the tensors must fill the data exactly."""
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin < end:
            raise _Invalid(f"{_shown(name)} overlaps another tensor")
        if tensor.begin > end:
            raise _Invalid(f"{tensor.begin - end} bytes before {_shown(name)} belong to no tensor")
        end = tensor.end
    if end != data_bytes:
        raise _Invalid(f"it holds {data_bytes} bytes of data where its header promises {end}")


def _are_counts(value: object) -> bool:
    """A JSON true is no number here, though Python counts it as one."""
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _shown(value: object) -> str:
    return ascii(value)[:80]
