"""What it costs to turn tokens into text and text into events, as a share of a decode step.

    python -m benchmarks.parsing [--quick] [--json]

Figures are seconds of this process's CPU time, on one BLAS thread. The answers of sixteen rows, with thoughts, words
and calls in the markup of a family, go token by token through the worker's detokenizer, with two stop strings, and
the parser. The step is that of a model of 150 million weights, each row looking back at 512 tokens.
"""

from __future__ import annotations

import sys

from benchmarks.report import run_benchmark
from mlxm.device.blas import open_blas


def main() -> int:
    """Open the BLAS, then measure: mlx must not be loaded before."""
    open_blas(num_threads=1)
    from benchmarks.parsing_cases import measure  # noqa: PLC0415  # loads mlx

    return run_benchmark("parsing", measure)


if __name__ == "__main__":
    sys.exit(main())
