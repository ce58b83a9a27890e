"""What continuous batching gives: this engine against mlx-lm's BatchGenerator, and against one sequence at a time.

    python -m benchmarks.engine [--quick] [--json] [--only CASE]…

Figures are seconds of this process's CPU time, on one BLAS thread, medians over rounds in which the contenders take
turns; a ratio says how many times faster than the named contender this engine is. `limit` is what the ratio would be if
only memory bandwidth and matrix products, as measured on this machine, took time. Each contender runs as in real life:
the peers with the kernels that mlx fuses on the CPU by default, this engine without them, as in a worker.

The gates take the larger model. With --quick there is only the smaller one, with fewer rounds, shorter contexts and
answers; the same values are then told beside their targets, and hold nothing up.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks.report import run_benchmark
from mlxm.device.blas import open_blas


def main() -> int:
    """Open the BLAS, then measure: mlx must not be loaded before."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", add_help=False)
    parser.add_argument("--only", action="append", default=[])
    options, others = parser.parse_known_args()
    open_blas(num_threads=1)
    from benchmarks.engine_cases import Cases  # noqa: PLC0415  # loads mlx

    return run_benchmark("engine", Cases(frozenset(options.only)).measure, others)


if __name__ == "__main__":
    sys.exit(main())
