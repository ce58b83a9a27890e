from __future__ import annotations

import pytest

from mlxm.device.stopwatch import Stopwatch


class Device:
    """A stopwatch on a device that is told how long its steps take."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.stopwatch = Stopwatch(lambda: self.now_s)

    def step(self, took_s: float, *, rows: int = 0, tokens: int = 0) -> tuple[float, float]:
        """The seconds of its chunks and of its rows."""
        began_s = self.now_s
        self.now_s += took_s
        return self.stopwatch.divide(began_s, rows, tokens)


def test_a_step_of_one_kind_is_all_of_that_kind() -> None:
    """Nothing is divided."""
    device = Device()
    assert device.step(0.5, tokens=100) == pytest.approx((0.5, 0.0))
    assert device.step(0.2, rows=4) == pytest.approx((0.0, 0.2))


def test_rows_take_beside_chunks_what_they_take_alone() -> None:
    """But never more than half of the step."""
    device = Device()
    device.step(0.2, rows=4)
    assert device.step(0.5, rows=4, tokens=50) == pytest.approx((0.3, 0.2))
    assert device.step(0.3, rows=4, tokens=50) == pytest.approx((0.15, 0.15))


def test_before_rows_ran_alone_they_take_what_tokens_leave() -> None:
    """Tokens take what they took alone, by the cheapest of those steps; so small chunks do not seem dear."""
    device = Device()
    device.step(0.5, tokens=500)
    device.step(0.1, tokens=10)
    assert device.step(0.06, rows=1, tokens=16) == pytest.approx((0.016, 0.044))


def test_before_anything_ran_alone_all_tokens_take_the_same() -> None:
    """Nothing else is known."""
    assert Device().step(0.4, rows=1, tokens=3) == pytest.approx((0.3, 0.1))


def test_steps_that_wait_for_the_device_are_timed_from_when_it_is_free() -> None:
    """The next step may be launched before the last one has ended."""
    device = Device()
    began_s = device.now_s
    device.step(0.4, rows=1)
    device.now_s += 0.3
    assert device.stopwatch.divide(began_s, 1, 0) == pytest.approx((0.0, 0.3))
