"""What is asked of the process that makes random weights: plain data, so that the asker needs no mlx."""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

REFUSED: Final = 2
"""The exit status of a process that was asked for something that cannot be made; its stderr says what and why."""


class Quantise(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How mlx's own converter packs the weights."""

    bits: int = 4
    group_size: int = 32
    mode: Literal["affine", "mxfp4", "nvfp4", "mxfp8"] = "affine"


class Job(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model to make: config.json and the weights are written into the existing `folder`."""

    config: dict[str, Any]
    folder: str
    seed: int = 0
    quantise: Quantise | None = None
