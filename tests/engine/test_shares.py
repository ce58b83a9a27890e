from __future__ import annotations

import random

import pytest

from mlxm.engine.pace import PaceOptions
from mlxm.frames import Delta
from mlxm.testing.runner import Costs
from tests.engine.harness import Harness, prompt_of

COSTS = Costs(chunk_token_s=0.0007, rows_s=0.014, row_s=0.0026)
"""Roughly a model of 30 million parameters on one core."""


def random_prompt(num_tokens: int, seed: int) -> tuple[int, ...]:
    """A prompt that begins like no other."""
    random_ = random.Random(seed)
    return tuple(random_.randrange(256) for _ in range(num_tokens))


def streaming(num_streams: int, *, runs_ahead: bool = False) -> Harness:
    """An engine with streams that have been running for a while."""
    harness = Harness(costs=COSTS, num_blocks=1_000, max_rows=16, runs_ahead=runs_ahead)
    for number in range(num_streams):
        harness.add(f"stream{number}", random_prompt(100, number), 3_000)
    harness.run_until(lambda: all(len(harness.tokens(f"stream{number}")) > 20 for number in range(num_streams)))
    return harness


def timed(harness: Harness) -> float:
    """How long a step takes."""
    began_s = harness.clock.now_s
    harness.step()
    return harness.clock.now_s - began_s


@pytest.mark.parametrize("runs_ahead", [False, True], ids=["in turn", "ahead"])
def test_a_long_prompt_neither_stalls_streams_nor_starves(runs_ahead: bool) -> None:  # noqa: FBT001
    """Steps take less than three times a quiet one, and the prompt not much over half longer than alone."""
    harness = streaming(8, runs_ahead=runs_ahead)
    quiet_s = max(timed(harness) for _ in range(10))
    began_s = harness.clock.now_s
    harness.add("long", random_prompt(4_000, 99), 4)
    steps_s = []
    while not harness.tokens("long"):
        steps_s.append(timed(harness))
        assert all(isinstance(event, Delta) for event in harness.events[-8:])
    alone_s = 4_000 * COSTS.chunk_token_s + COSTS.rows_s + COSTS.row_s
    assert sorted(steps_s)[int(0.95 * len(steps_s))] <= 3.0 * quiet_s
    assert max(steps_s) <= 3.05 * quiet_s
    assert harness.clock.now_s - began_s <= 1.6 * alone_s


def test_streams_go_on_in_every_step_while_prompts_are_computed() -> None:
    """Prompts take their share beside them."""
    harness = streaming(4)
    harness.add("long", random_prompt(2_000, 99), 4)
    while not harness.tokens("long"):
        events = harness.step()
        assert len({event.request_id for event in events if isinstance(event, Delta)}) >= 4


def test_short_prompts_that_come_together_are_computed_together() -> None:
    """Sixteen prompts of 128 tokens take four steps of 512, and then all answer at once."""
    harness = Harness(costs=COSTS, num_blocks=500, max_rows=16)
    for number in range(16):
        harness.add(f"r{number}", random_prompt(128, number), 64)
    harness.run()
    assert [len(plan.rows) for plan in harness.runner.plans] == [0] * 4 + [16] * 64
    assert max(len(plan.chunks) for plan in harness.runner.plans) >= 4


def test_first_tokens_do_not_wait_for_long_prompts() -> None:
    """Nor for prompts of less priority, nor for more than a few steps."""
    harness = Harness(costs=COSTS, num_blocks=500, max_rows=16)
    harness.add("short", random_prompt(20, 0), 64)
    harness.add("long", random_prompt(3_000, 1), 64)
    harness.step(2)
    assert len(harness.tokens("short")) == 1
    harness = Harness(pace=PaceOptions(max_chunk_tokens=40, min_chunk_tokens=4), max_rows=2)
    harness.add("high", random_prompt(20, 0), 64, priority=0)
    harness.add("low", random_prompt(30, 1), 64, priority=2)
    harness.step(2)
    assert len(harness.tokens("high")) == 1


def test_first_tokens_wait_only_a_few_steps() -> None:
    """However many short prompts follow one another."""
    harness = Harness(
        costs=COSTS, pace=PaceOptions(max_chunk_tokens=128, min_chunk_tokens=16), max_rows=16, num_blocks=200
    )
    for number in range(100):
        harness.add(f"r{number}", random_prompt(32, number), 2)
        harness.add(f"s{number}", random_prompt(32, 500 + number), 2)
        harness.step()
        if harness.tokens("r0"):
            break
    assert 4 <= number <= 6


def test_short_prompts_pass_long_ones_and_do_not_starve_them() -> None:
    """Half of every step is the first one's, the other half goes to the shortest."""
    harness = streaming(4)
    harness.add("long", random_prompt(4_000, 98), 4)
    harness.add("another", random_prompt(4_000, 99), 4)
    num_shorts = 0
    while not harness.tokens("long"):
        harness.add(f"short{num_shorts}", random_prompt(30, 100 + num_shorts), 1)
        harness.step()
        num_shorts += 1
        assert num_shorts < 150
    assert num_shorts > 50
    answered = [number for number in range(num_shorts) if harness.tokens(f"short{number}")]
    assert answered[: num_shorts - 5] == list(range(num_shorts - 5))


def test_prompts_alone_are_computed_in_large_chunks() -> None:
    """As nobody waits for a next token."""
    harness = Harness(num_blocks=200)
    harness.add("a", prompt_of(1_100), 2)
    harness.run()
    assert [len(chunk.tokens) for plan in harness.runner.plans for chunk in plan.chunks] == [512, 512, 75]
