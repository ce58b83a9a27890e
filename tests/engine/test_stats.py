from __future__ import annotations

import pytest

from mlxm.engine.stats import Meter, StepTimes
from mlxm.frames import Stats
from mlxm.testing.runner import Costs
from tests.engine.harness import Harness, prompt_of


def test_rates_are_those_of_the_last_seconds() -> None:
    """Steps leave the window, and an idle engine makes nothing."""
    meter = Meter(100.0)
    assert meter.fill(Stats(), 100.0) == Stats()
    for second in range(10):
        meter.add(StepTimes(101.0 + second, num_rows=4, chunks_s=0.1, rows_s=0.3))
        meter.add(StepTimes(101.0 + second, num_rows=0, chunks_s=0.1, rows_s=0.0))
    stats = meter.fill(Stats(), 110.0)
    assert stats.tokens_per_s == pytest.approx(6 * 4 / 5)
    assert stats.batch_width == 4
    assert (stats.step_s, stats.step_chunks_s, stats.step_rows_s) == pytest.approx((0.25, 0.1, 0.15))
    assert meter.fill(Stats(), 200.0) == Stats()


def test_a_young_engine_is_not_judged_by_the_whole_window() -> None:
    """Nor divided by nothing."""
    meter = Meter(100.0)
    meter.add(StepTimes(100.0, num_rows=4, chunks_s=0.0, rows_s=0.0))
    assert meter.fill(Stats(), 102.0).tokens_per_s == 2
    assert meter.fill(Stats(), 100.0).tokens_per_s == 4_000


def test_the_engine_tells_how_it_is_doing() -> None:
    """In the middle of its work, and after it."""
    harness = Harness(num_blocks=21, max_rows=2, costs=Costs(chunk_token_s=0.001, rows_s=0.1))
    for number in range(3):
        harness.add(f"r{number}", prompt_of(40, number), 10)
    harness.step(6)
    stats = harness.engine.stats
    assert (stats.running, stats.waiting) == (2, 1)
    assert (stats.blocks_total, stats.blocks_used, stats.blocks_cached, stats.blocks_free) == (20, 4, 0, 16)
    assert stats.batch_width == 2
    assert stats.waste == pytest.approx(1 - 2 * (39 + len(harness.tokens("r0"))) / (4 * 32))
    assert stats.tokens_per_s > 0
    assert stats.step_s == pytest.approx(stats.step_chunks_s + stats.step_rows_s)
    assert (stats.active_bytes, stats.peak_bytes, stats.cache_bytes) == (None, None, None)
    harness.run()
    stats = harness.engine.stats
    assert (stats.running, stats.waiting, stats.blocks_used, stats.waste) == (0, 0, 0, 0.0)
    assert stats.blocks_cached + stats.blocks_free == 20
    assert stats.prefix_queried_tokens == 120
