"""What choosing tokens costs beside computing their logits: each way of sampling, as a share of a decode step.

    python -m benchmarks.sampling [--quick] [--json]

Figures are seconds of this process's CPU time, on one BLAS thread, for sixteen rows over 32 000 tokens, medians over
rounds in which all take turns. The step is that of a model of 150 million weights, each row looking back at 512 tokens;
it and the samplers are timed apart, because a step varies by more than a sampler takes. A grammar's share has in it
what the host does for it: following the chosen tokens and computing the next masks.
"""

from __future__ import annotations

import sys

from benchmarks.report import run_benchmark
from mlxm.device.blas import open_blas


def main() -> int:
    """Open the BLAS, then measure: mlx must not be loaded before."""
    open_blas(num_threads=1)
    from benchmarks.sampling_cases import measure  # noqa: PLC0415  # loads mlx

    return run_benchmark("sampling", measure)


if __name__ == "__main__":
    sys.exit(main())
