from __future__ import annotations

import pytest

from mlxm.engine.scheduler import SchedulerOptions
from tests.engine.harness import Harness, prompt_of, scripted

AHEAD = pytest.mark.parametrize("runs_ahead", [False, True], ids=["in turn", "ahead"])
CARELESS = SchedulerOptions(expected_tokens=0)
"""Keeps no room for answers, so that memory ends while they grow."""
HIGH, NORMAL, LOW = 0, 1, 2


@AHEAD
@pytest.mark.parametrize("shares_prefixes", [True, False])
def test_who_is_preempted_goes_on_exactly(runs_ahead: bool, shares_prefixes: bool) -> None:  # noqa: FBT001
    """Its answer is what it would have been, and no token comes twice."""
    harness = Harness(num_blocks=13, options=CARELESS, runs_ahead=runs_ahead, shares_prefixes=shares_prefixes)
    orders = [(f"r{number}", prompt_of(30, number), 120) for number in range(6)]
    for order in orders:
        harness.add(*order)
    harness.run().check_answers(orders)
    assert harness.engine.stats.preemptions > 0
    assert sorted(harness.started()) == [name for name, _, _ in orders]
    assert [harness.end(name).usage.cached_tokens for name, _, _ in orders] == [0] * 6
    harness.check_idle()


def test_the_newest_of_the_lowest_priority_gives_way_first() -> None:
    """Whoever needs the block; an older one of high priority is never disturbed."""
    harness = Harness(num_blocks=15, options=CARELESS)
    for number, name in enumerate(("low old", "high", "low new", "normal")):
        harness.clock.now_s += 1
        priority = {"low": LOW, "high": HIGH, "normal": NORMAL}[name.split()[0]]
        harness.add(name, prompt_of(40, number), 200, priority=priority)
    left = []
    while len(left) < 3:
        before = {sequence.id: sequence for sequence in harness.scheduler.running}
        harness.step()
        gone = before.keys() - {sequence.id for sequence in harness.scheduler.running}
        left += [harness.engine._owners[number][0].order.request_id for number in gone]
    assert left == ["low new", "low old", "normal"]


def test_low_priority_gives_way_also_to_those_who_came_later() -> None:
    """When it was running first."""
    harness = Harness(num_blocks=9, options=CARELESS)
    harness.add("low", prompt_of(20), 150, priority=LOW)
    harness.step(3)
    harness.add("high", prompt_of(20, 1), 150, priority=HIGH)
    harness.run_until(lambda: harness.engine.stats.preemptions == 1)
    assert [sequence.priority for sequence in harness.scheduler.running] == [HIGH]
    harness.run().check_answers([("low", prompt_of(20), 150), ("high", prompt_of(20, 1), 150)])


@pytest.mark.parametrize(("num_blocks", "num_running"), [(14, 1), (15, 2)])
def test_a_newcomer_leaves_something_for_those_who_run(num_blocks: int, num_running: int) -> None:
    """Not even the last block beyond what all are thought to need is promised to it."""
    harness = Harness(num_blocks=num_blocks, options=SchedulerOptions(expected_tokens=100))
    harness.add("a", prompt_of(100), 120)
    harness.add("b", prompt_of(90, 1), 120)
    harness.step()
    assert harness.engine.stats.running == num_running


def test_what_was_computed_before_preemption_is_found_again() -> None:
    """Its full blocks stay as a prefix while nobody needs them."""
    harness = Harness(num_blocks=14, options=CARELESS)
    harness.add("a", prompt_of(130), 100)
    harness.add("b", prompt_of(130, 1), 100)
    harness.run_until(lambda: harness.engine.stats.preemptions == 1)
    harness.run_until(lambda: len(harness.tokens("a")) > 95)
    num_computed = harness.runner.tally.num_chunk_tokens
    harness.cancel("a")
    harness.run().check_answers([("b", prompt_of(130, 1), 100)])
    assert harness.runner.tally.num_chunk_tokens - num_computed < 64
    assert harness.end("b").usage.cached_tokens == 0


def test_who_was_preempted_comes_back_before_those_who_came_later() -> None:
    """It keeps its arrival time."""
    harness = Harness(num_blocks=14, options=CARELESS, max_rows=2)
    for number, name in enumerate(("a", "b", "later")):
        harness.clock.now_s += 1
        harness.add(name, prompt_of(130, number), 100)
    harness.run_until(lambda: harness.engine.stats.preemptions == 1)
    num_tokens = len(harness.tokens("b"))
    harness.run_until(lambda: len(harness.tokens("b")) > num_tokens)
    assert harness.started() == ["a", "b"]
    harness.run()


@AHEAD
def test_the_smallest_pool_serves_everybody_in_the_end(runs_ahead: bool) -> None:  # noqa: FBT001
    """No deadlock, however little fits at once, and prompts that take steps to compute."""
    harness = Harness(num_blocks=4, options=CARELESS, runs_ahead=runs_ahead, max_rows=8)
    orders = [(f"r{number}", prompt_of(1 + 11 * number % 64, number), 33) for number in range(12)]
    for number, order in enumerate(orders):
        harness.add(*order, priority=number % 3)
    harness.run().check_answers(orders)
    harness.check_idle()


def test_room_is_kept_for_answers_so_that_nobody_is_preempted() -> None:
    """Usual answers grow into room that was kept for them."""
    harness = Harness(num_blocks=60, max_rows=16)
    orders = [(f"r{number}", prompt_of(64, number), 200) for number in range(12)]
    for order in orders:
        harness.add(*order)
    harness.run().check_answers(orders)
    assert harness.engine.stats.preemptions == 0
    assert 1 < harness.runner.tally.max_rows < 12


def test_nobody_is_overtaken_while_waiting_for_memory() -> None:
    """A large request at the front of the queue is not starved by small ones behind it."""
    harness = Harness(num_blocks=21, max_rows=4)
    harness.add("running", prompt_of(300), 60)
    harness.step()
    harness.add("large", prompt_of(400, 1), 20)
    for number in range(20):
        harness.add(f"small{number}", prompt_of(5, number), 5)
    harness.run()
    assert harness.started()[:2] == ["running", "large"]


def test_admission_follows_priority_and_waiting() -> None:
    """One at a time: high before normal before low, but who has waited long enough comes first."""
    harness = Harness(max_rows=1)
    harness.add("first", (1,), 1)
    harness.add("old low", (2,), 1, priority=LOW)
    harness.clock.now_s += 25
    for name, priority in (("low", LOW), ("normal", NORMAL), ("high", HIGH), ("high too", HIGH)):
        harness.add(name, (3,), 1, priority=priority)
    harness.run()
    assert harness.started() == ["first", "old low", "high", "high too", "normal", "low"]


def test_an_arrival_of_the_past_counts() -> None:
    """The time that a request has waited elsewhere."""
    harness = Harness(max_rows=1)
    harness.add("first", (1,), 1)
    harness.step()
    harness.add("new", (2,), 1)
    harness.add("old", (3,), 1, arrival_s=harness.clock.now_s - 60)
    harness.run()
    assert harness.started() == ["first", "old", "new"]


def test_little_memory_is_wasted() -> None:
    """At contexts of a thousand tokens less than 4 % of the places in owned blocks are empty."""
    harness = Harness(num_blocks=700, max_rows=16)
    for number in range(16):
        harness.add(f"r{number}", prompt_of(990 + 17 * number, number), 64)
    wastes = []
    while harness.engine.has_work:
        harness.step()
        running = harness.scheduler.running
        if running and all(sequence.num_computed >= 1_000 for sequence in running):
            wastes.append(harness.engine.stats.waste)
    assert len(wastes) > 30
    assert 0 < max(wastes) < 0.04
    assert scripted(prompt_of(990), 64) == harness.tokens("r0")
