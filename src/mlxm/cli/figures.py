"""How the numbers of models are written: short enough for a column, and the same in every command."""

from __future__ import annotations

from pathlib import Path
from typing import Final

UNKNOWN: Final = "unknown"
_STEP = 1000
_BYTE_UNITS = ("B", "KB", "MB", "GB", "TB")
_COUNT_UNITS = ("", "K", "M", "B", "T")
_TOKEN_UNITS = ("", "k", "M")
_AGES = ((31_536_000, "y"), (604_800, "w"), (86_400, "d"), (3_600, "h"), (60, "m"))
_WHOLE = 100


def show_bytes(num_bytes: int) -> str:
    """A size as the Hub and disk makers count: 2.3 GB."""
    number, unit = _scaled(num_bytes, _BYTE_UNITS, _STEP)
    return f"{number} {unit}"


def show_count(count: int) -> str:
    """A number of parameters: 4.0B."""
    number, unit = _scaled(count, _COUNT_UNITS, _STEP)
    return f"{number}{unit}"


def show_tokens(num_tokens: int) -> str:
    """A context's length: 32k for 32768, and for 32000 as well."""
    step = _STEP if num_tokens % _STEP == 0 else 1024
    for unit in _TOKEN_UNITS:
        if num_tokens < step or unit == _TOKEN_UNITS[-1]:
            return f"{num_tokens}{unit}"
        if num_tokens % step:
            break
        num_tokens //= step
    return f"{num_tokens}{unit}"


def show_age(seconds: float) -> str:
    """How long ago something was, in one unit: 2m ago."""
    for unit_s, unit in _AGES:
        if seconds >= unit_s:
            return f"{int(seconds // unit_s)}{unit} ago"
    return "just now"


def show_duration(seconds: float) -> str:
    """How long something took: 27 s, 3 min 5 s."""
    whole = round(seconds)
    if whole < 60:  # noqa: PLR2004  # seconds in a minute
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s"


def show_path(path: Path) -> str:
    """A path as people write it."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) and path != home else str(path)


def count_of(number: int, noun: str) -> str:
    """A number with its noun: 1 model, 2 models."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _scaled(number: int, units: tuple[str, ...], step: int) -> tuple[str, str]:
    """The number in the largest unit of which there is one, with a decimal where that still says something."""
    value = float(number)
    for unit in units:
        # What would be rounded up to a whole step belongs to the next unit.
        if round(value) < step or unit == units[-1]:
            break
        value /= step
    if unit == units[0] or value >= _WHOLE:
        return f"{value:.0f}", unit
    return f"{value:.1f}", unit
