"""What clients get from `mlxm serve` and from other servers, on the same model folder and the same BLAS.

    python -m benchmarks.server [--quick] [--json] [--only CASE]… [--size SIZE] [--rounds N]

Clients stream chat completions; they are a process of their own, and what they cost is not counted. Throughput is
tokens per second of CPU time, taken over all of a server's processes: the machine may have other things to do.
Latencies are compared within a round, and the median of the rounds' ratios counts. In each round the contenders take
turns, are asked the same, and must give the same number of tokens. Answers are greedy.

unique_128: as many clients as said at once, with prompts of 128 tokens that have nothing in common. `engine alone` is
our engine on the same prompts, without a server around it.
mixed: prompts of 64 to 2,000 tokens that come one by one.
shared_prefix: questions after the same 1,000 tokens: one first, then all others at once, every one of them counted.

The gates take the larger model. With --quick there is only the smaller one, with one round, and shorter prompts and
answers; the same values are then told beside their targets, and hold nothing up.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks.report import run_benchmark
from benchmarks.server_cases import Cases


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.server", add_help=False)
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--size")
    parser.add_argument("--rounds", type=int)
    options, others = parser.parse_known_args()
    return run_benchmark("server", Cases(frozenset(options.only), options.size, options.rounds).measure, others)


if __name__ == "__main__":
    sys.exit(main())
