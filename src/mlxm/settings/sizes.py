"""Numbers of bytes as people write them, in settings and on the command line."""

from __future__ import annotations

import re
from decimal import Decimal

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
_WHOLE = 100
_PERCENTAGE = re.compile(r"(\d{1,3}(?:\.\d{1,6})?) ?%", re.ASCII)
_SIZE = re.compile(r"(\d{1,20}(?:\.\d{1,20})?) ?([a-z]*)", re.ASCII | re.IGNORECASE)


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


def parse_share(limit: object) -> tuple[float | None, int | None]:
    """The percentage that `80%` means, or the number of bytes that any size does; ValueError when it means neither."""
    found = _PERCENTAGE.fullmatch(limit.strip()) if isinstance(limit, str) else None
    if found is None:
        return None, parse_bytes(limit)
    percent = float(found[1])
    if not 0 < percent <= _WHOLE:
        raise ValueError("not a percentage of something")
    return percent, None


def format_bytes(num_bytes: int) -> str:
    """The shortest exact way to write a size, such as 512MB or 10MiB."""
    exact = [f"{num_bytes // unit}{name}" for name, unit in _UNIT_BYTES.items() if num_bytes % unit == 0]
    return min(reversed(exact), key=len) if num_bytes else "0B"
