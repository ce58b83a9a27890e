"""What the values of `benchmarks.engine` are held to."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.report import Gate


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a value is held to; `stretch` is what it should become."""

    bound: float
    stretch: float | None = None
    is_most: bool = False


TARGETS = {
    "decode_mixed_vs_one_at_a_time": Target(bound=5.0, stretch=7.0),
    "decode_mixed_vs_batch_generator": Target(bound=2.0),
    "decode_equal_512": Target(bound=0.95, stretch=1.1),
    "decode_shared_1024": Target(bound=1.5),
    "decode_shared_4096": Target(bound=2.0),
    "run_mixed": Target(bound=1.7),
    "run_unique_128": Target(bound=1.05, stretch=1.3),
    "peak_memory": Target(bound=0.35, is_most=True),
    "warm_prefix": Target(bound=1 / 15, is_most=True),
    "step_p95_under_prompt": Target(bound=3.0, is_most=True),
    "prompt_under_streams": Target(bound=1.5, is_most=True),
}


def gate_on(name: str, value: float) -> Gate:
    """Whether a value meets its target."""
    target = TARGETS[name]
    return (Gate.at_most if target.is_most else Gate.at_least)(name, value, round(target.bound, 4))
