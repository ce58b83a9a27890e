"""How many parameters a name promises: the 7B in Mistral-7B, the 8x7B in Mixtral, the 270m in gemma-3-270m."""

from __future__ import annotations

import re
from typing import Final

_SIZE: Final = re.compile(
    r"(?<![a-z0-9.])(?:(?P<experts>\d{1,3})x)?(?P<number>\d{1,4}(?:\.\d{1,3})?)(?P<unit>[bm])(?![a-z0-9])",
    re.IGNORECASE,
)
_UNITS: Final = {"b": 1_000_000_000, "m": 1_000_000}


def parameters_of_name(name: str) -> int | None:
    """The largest size that the name speaks of: in 30B-A3B the second one is what is active at once."""
    sizes = [
        int(float(found["number"]) * int(found["experts"] or 1) * _UNITS[found["unit"].lower()])
        for found in _SIZE.finditer(name)
    ]
    return max(sizes, default=None)
