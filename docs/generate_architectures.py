"""Writes the table of architectures.md: `python docs/generate_architectures.py`, in about a minute.

Each architecture is built tiny, and asked what the product asks of a model when it loads it: which stores are right for
it. Which of those is the fastest depends on the machine, so all are named. The tests compare the page with what they
find.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mlxm.device.blas import open_blas

open_blas()
os.environ.setdefault("MLX_DISABLE_COMPILE", "1")  # fused kernels take a compiler a second each

from mlxm.device.batch_check import find_batching_fault  # noqa: E402  # loads mlx
from mlxm.device.choice import CANDIDATES, Candidate  # noqa: E402
from mlxm.device.kv_store import LayerShape, read_shapes  # noqa: E402
from mlxm.device.loader import LoadedModel, load  # noqa: E402
from mlxm.device.reference import Reference, compute_reference  # noqa: E402
from mlxm.device.selfcheck import blocks_needed, find_fault  # noqa: E402
from mlxm.errors import InternalError  # noqa: E402
from mlxm.testing import ARCHITECTURES, build_models  # noqa: E402

PAGE = Path(__file__).with_name("architectures.md")
_FAILURES = (ArithmeticError, AttributeError, InternalError, LookupError, RuntimeError, TypeError, ValueError)
_HEAD = (
    "| Architecture | Keys and values | Prefixes reused | Rows of a step | Why not in blocks |",
    "|---|---|---|---|---|",
)
_PAGE = """\
# Architectures

How sequences of each architecture are kept and computed, as found on tiny models with random weights. All of them
answer in a batch what they answer alone.

- *paged in place*: in blocks, which attention reads where they lie; *gathered rows*: in blocks, which are gathered for
  the model. Where both are right, the faster one on the machine at hand is taken. Prompts that begin like an earlier
  one start where that one's blocks end, sliding windows included.
- *mlx-lm batch caches*: what a sequence keeps is no list of keys and values, or the model reads it in its own way. Each
  sequence has its own caches, and those of all rows are merged for a step.
- *one at a time*: the model is wrong in a batch, or its caches cannot be merged: rows of a step are computed one after
  the other.

{table}
"""


class Support(NamedTuple):
    """How an architecture is served; `kinds` are the stores over blocks that are right for it."""

    kinds: tuple[str, ...]
    is_batched: bool
    reason: str = ""


def find_support(loaded: LoadedModel) -> Support:
    """What the product would find, without the timing."""
    try:
        shapes = read_shapes(loaded.model)
    except InternalError as error:
        return _outside_blocks(loaded, error.message.partition(",")[0])
    reference = compute_reference(loaded.model, shapes, loaded.vocab_size)
    found = [_first_right(family, loaded, shapes, reference) for family in CANDIDATES]
    kinds = tuple(kind for kind in found if kind is not None)
    return Support(kinds, is_batched=True) if kinds else _outside_blocks(loaded, "")


def write_row(name: str, support: Support) -> str:
    """The table's row."""
    where = ", ".join(support.kinds) or ("mlx-lm batch caches" if support.is_batched else "mlx-lm caches")
    reused = "yes" if support.kinds else "no"
    return (
        f"| {name} | {where} | {reused} | {'together' if support.is_batched else 'one at a time'} | {support.reason} |"
    )


def _outside_blocks(loaded: LoadedModel, reason: str) -> Support:
    fault = find_batching_fault(loaded.model, loaded.vocab_size) or ""
    reasons = (reason, fault.partition(":")[0].partition(" (")[0])
    return Support((), is_batched=not fault, reason="; ".join(filter(None, reasons)))


def _first_right(
    family: Sequence[Candidate], loaded: LoadedModel, shapes: Sequence[LayerShape], reference: Reference
) -> str | None:
    for candidate in family:
        try:
            fault = find_fault(candidate.make(loaded.model, shapes, blocks_needed(reference)), reference)
        except _FAILURES:
            continue
        if fault is None:
            return candidate.kind
    return None


def main() -> int:
    """Write the page."""
    with tempfile.TemporaryDirectory(prefix="mlxm-docs-") as scratch:
        folders = build_models(ARCHITECTURES, Path(scratch))
        rows = [write_row(name, find_support(load(folder, lambda *_: None))) for name, folder in folders.items()]
    PAGE.write_text(_PAGE.format(table="\n".join((*_HEAD, *rows))), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
