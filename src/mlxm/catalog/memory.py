"""How much memory a model will take, and whether that fits."""

from __future__ import annotations

from typing import Literal

import msgspec

from mlxm.catalog.characteristics import Characteristics


class MemoryEstimate(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes by use. `kv_bytes` None: the cache of this architecture is not known, and `total_bytes` leaves it out."""

    context: int | None
    weights_bytes: int
    kv_bytes: int | None
    overhead_bytes: int
    total_bytes: int
    basis: Literal["headers", "files", "parameters", "name"]
    """What the weights were taken from; "name" is the rough last resort."""


def estimate(
    characteristics: Characteristics, size_bytes: int | None = None, context: int | None = None, *, kv_bits: int = 16
) -> MemoryEstimate | None:
    """What the model takes for one sequence of `context` tokens (None: its own limit); None when nothing is known."""
    raise NotImplementedError


def estimate_by_name(name: str) -> MemoryEstimate | None:
    """The last resort, from the 7B in a name: 3B takes 2 GB and 7B takes 4 GB at four bits."""
    raise NotImplementedError


def fits(total_bytes: int, budget_bytes: int) -> bool:
    """Whether a model of that total may be loaded into that budget."""
    raise NotImplementedError


def largest_context(
    characteristics: Characteristics, budget_bytes: int, size_bytes: int | None = None, *, kv_bits: int = 16
) -> int | None:
    """The longest context within the model's limit that fits, 0 when not even the weights do, None when unknown."""
    raise NotImplementedError
