from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mlxm.engine.output import Answer, Piece
from mlxm.engine.plan import Plan
from mlxm.engine.scheduler import SchedulerOptions
from mlxm.errors import OutOfMemory
from tests.engine.harness import Harness, prompt_of, scripted

SECRET = "the secret of the prompt"
RUNNERS = pytest.mark.parametrize(
    "facts",
    [
        {"runs_ahead": runs_ahead, "shares_prefixes": shares_prefixes}
        for runs_ahead in (False, True)
        for shares_prefixes in (False, True)
    ],
    ids=["plain", "sharing", "ahead", "ahead sharing"],
)
ORDERS = [(f"r{number}", prompt_of(20 + 17 * number, number), 40) for number in range(7)]
BAD = ("bad", prompt_of(100, 50), 40)


def raise_for(sequence: int, position: int) -> Callable[[Plan], None]:
    """Fails every plan in which a sequence comes to a position."""

    def check(plan: Plan) -> None:
        rows = any(row.sequence == sequence and row.position >= position for row in plan.rows)
        chunks = any(chunk.sequence == sequence and chunk.start + len(chunk.tokens) > position for chunk in plan.chunks)
        if rows or chunks:
            raise LookupError(SECRET)

    return check


def with_bad_one(**facts: Any) -> tuple[Harness, int]:
    """An engine with seven good requests and a bad one among them; the bad one's sequence."""
    harness = Harness(max_rows=8, num_blocks=80, **facts)
    for order in (*ORDERS[:4], BAD, *ORDERS[4:]):
        harness.add(*order)
    return harness, harness.engine._requests["bad"].sequences[0].id


@RUNNERS
@pytest.mark.parametrize("stage", ["launch", "collect"])
@pytest.mark.parametrize("position", [0, 40, 99, 120])
def test_a_step_that_fails_ends_only_who_made_it_fail(
    facts: dict[str, Any], stage: str, position: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """In the prompt, at the first token or later; the others have the tokens of a clean run."""
    harness, sequence = with_bad_one(**facts)
    setattr(harness.runner.faults, stage, raise_for(sequence, position))
    harness.run().check_answers(ORDERS)
    fault = harness.end("bad").fault
    assert fault is not None
    assert (fault.code, fault.message) == ("internal_error", "The engine failed on this request (LookupError).")
    assert fault.hint == "See the server's log."
    assert f"LookupError: {SECRET}" in capfd.readouterr().err
    assert SECRET not in repr(harness.events)
    assert scripted(BAD[1], max(0, position - 99)) == harness.tokens("bad")
    harness.check_idle()


@RUNNERS
@pytest.mark.parametrize("stage", ["chunk", "row"])
def test_numbers_that_are_not_finite_end_only_whose_they_are(facts: dict[str, Any], stage: str) -> None:
    """What they have left in blocks is wiped before anybody else gets those."""
    harness, sequence = with_bad_one(**facts)
    setattr(harness.runner.faults, stage, lambda work: work.sequence == sequence)
    later = [(f"later{number}", prompt_of(90, 80 + number), 50) for number in range(3)]
    harness.run_until(lambda: "bad" not in harness.engine._requests)
    for order in later:
        harness.add(*order)
    harness.run().check_answers([*ORDERS, *later])
    fault = harness.end("bad").fault
    assert fault is not None
    assert fault.message == "The model's numbers are not finite any more."
    assert harness.runner.tally.num_wipes > 0
    harness.check_idle()


@RUNNERS
@pytest.mark.parametrize("stage", ["launch", "collect"])
def test_a_step_that_fails_once_ends_nobody(facts: dict[str, Any], stage: str) -> None:
    """It is done again, exactly."""
    harness, _ = with_bad_one(**facts)
    num_left = [9]

    def fail_once(_plan: Plan) -> None:
        num_left[0] -= 1
        if num_left[0] == 0:
            raise OSError

    setattr(harness.runner.faults, stage, fail_once)
    harness.run().check_answers([*ORDERS, BAD])
    assert num_left[0] < 0
    harness.check_idle()


@RUNNERS
def test_a_runner_that_is_broken_ends_everybody(facts: dict[str, Any]) -> None:
    """Each with the runner's own words where those may be shown, and in few attempts."""
    harness, _ = with_bad_one(**facts)
    harness.step(4)

    def fail(_plan: Plan) -> None:
        raise OutOfMemory("There is no memory left.", hint="Load a smaller model.")

    harness.runner.faults.launch = fail
    num_before = harness.runner.tally.num_launched
    harness.run()
    for name, _, _ in (*ORDERS, BAD):
        fault = harness.end(name).fault
        assert fault is not None
        assert (fault.code, fault.message, fault.hint) == (
            "out_of_memory",
            "There is no memory left.",
            "Load a smaller model.",
        )
    assert harness.runner.tally.num_launched - num_before <= 2 * 8
    harness.check_idle()


@RUNNERS
def test_launching_and_collecting_may_fail_together(facts: dict[str, Any]) -> None:
    """Two bad ones, one at each stage."""
    harness, sequence = with_bad_one(**facts)
    harness.add("worse", prompt_of(100, 60), 40)
    harness.runner.faults.launch = raise_for(sequence, 110)
    harness.runner.faults.collect = raise_for(harness.engine._requests["worse"].sequences[0].id, 109)
    harness.run().check_answers(ORDERS)
    assert harness.end("bad").fault is not None
    assert harness.end("worse").fault is not None
    harness.check_idle()


@RUNNERS
def test_a_failing_answer_ends_its_request_alone(facts: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """When tokens cannot be turned into text."""
    harness, _ = with_bad_one(**facts)
    bad = harness.engine._requests["bad"].answers[0]
    add = Answer.add

    def failing(self: Answer, token_id: int, *, is_complete: bool) -> Piece:
        if self is bad and self.num_tokens == 5:
            raise UnicodeError(SECRET)
        return add(self, token_id, is_complete=is_complete)

    monkeypatch.setattr(Answer, "add", failing)
    harness.run().check_answers(ORDERS)
    fault = harness.end("bad").fault
    assert fault is not None
    assert "UnicodeError" in fault.message
    assert len(harness.tokens("bad")) == 5
    harness.check_idle()


@RUNNERS
@pytest.mark.parametrize("stage", ["launch", "collect"])
def test_one_bad_choice_ends_its_request(facts: dict[str, Any], stage: str) -> None:
    """A request has one end; the other choices' blocks come back with it."""
    harness = Harness(num_blocks=80, **facts)
    for order in ORDERS[:2]:
        harness.add(*order)
    harness.add("bad", prompt_of(50, 9), 40, num_choices=3)
    sequence = harness.engine._requests["bad"].sequences[2].id
    setattr(harness.runner.faults, stage, raise_for(sequence, 55))
    harness.run().check_answers(ORDERS[:2])
    assert harness.end("bad").fault is not None
    for choice in range(3):
        tokens = harness.tokens("bad", choice)
        assert scripted(prompt_of(50, 9), len(tokens), choice=choice) == tokens
    harness.check_idle()


def test_nothing_runs_ahead_while_a_culprit_is_sought() -> None:
    """So that a step that fails is known to be the culprit's."""
    harness, sequence = with_bad_one(runs_ahead=True)
    harness.run_until(lambda: len(harness.tokens("bad")) == 10)
    in_flight: list[int] = []

    def launch(plan: Plan) -> None:
        in_flight.append(len(harness.runner._launched))
        raise_for(sequence, 0)(plan)

    harness.runner.faults.launch = launch
    harness.run_until(lambda: "bad" not in harness.engine._requests)
    assert in_flight[0] == 1
    assert set(in_flight[1:]) == {0}
    assert len(in_flight) > 3


def test_who_is_cancelled_while_its_step_fails_is_not_sought() -> None:
    """The other one that was in the step is not taken for the culprit either."""
    harness = Harness(runs_ahead=True)
    harness.add("bad", prompt_of(5), 40)
    harness.add("good", prompt_of(5, 1), 40)
    harness.step(4)
    harness.runner.faults.collect = raise_for(harness.engine._requests["bad"].sequences[0].id, 0)
    harness.cancel("bad")
    harness.run().check_answers([("good", prompt_of(5, 1), 40)])
    harness.check_idle()


def test_a_culprit_is_sought_while_memory_is_short() -> None:
    """Those who are not suspected stand still, but give way when the suspects need blocks."""
    harness = Harness(num_blocks=9, options=SchedulerOptions(expected_tokens=0), max_rows=4)
    orders = [(f"r{number}", prompt_of(28 + number, number), 100) for number in range(4)]
    for order in orders:
        harness.add(*order)
    num_launches = [0]

    def fail_often(_plan: Plan) -> None:
        num_launches[0] += 1
        if num_launches[0] % 7 == 0 and len(_plan.rows) > 1:
            raise OSError

    harness.runner.faults.launch = fail_often
    harness.run().check_answers(orders)
    assert harness.engine.stats.preemptions > 0
    harness.check_idle()
