import json

import pytest

from benchmarks.report import Gate, Report, median_ratio, run_benchmark


def report_of(*gates: Gate) -> Report:
    """A report with one row."""
    return Report(rows=({"measured": "nothing", "wall_ms": 1.5},), gates=gates)


def test_gates_hold_up_to_their_targets() -> None:
    """A target is part of what is allowed, whichever way a gate looks."""
    assert [Gate.at_most("g", value, 2.5).ok for value in (2.4, 2.5, 2.6)] == [True, True, False]
    assert [Gate.at_least("g", value, 2.5).ok for value in (2.4, 2.5, 2.6)] == [False, True, True]


def test_a_gate_is_judged_before_it_is_rounded() -> None:
    """What is shown in four digits was not judged in four digits."""
    assert not Gate.at_most("g", 0.50001, 0.5).ok


@pytest.mark.parametrize(("values", "code"), [((1.0, 2.0), 0), ((1.0, 3.0), 1), ((), 0)])
def test_the_exit_code_says_whether_every_gate_holds(
    capsys: pytest.CaptureFixture[str], values: tuple[float, ...], code: int
) -> None:
    """One failed gate is enough; the report is printed all the same."""
    report = report_of(*(Gate.at_most(f"gate{value}", value, 2.0) for value in values))
    assert run_benchmark("nothing", lambda _: report, ["--json"]) == code
    printed = json.loads(capsys.readouterr().out)
    assert printed.keys() == {"machine", "versions", "rows", "gates"}
    assert [gate["value"] for gate in printed["gates"]] == list(values)
    assert all(gate.keys() == {"name", "value", "target", "ok"} for gate in printed["gates"])


def test_people_see_the_machine_the_rows_and_the_gates(capsys: pytest.CaptureFixture[str]) -> None:
    """A failed gate stands out."""
    assert run_benchmark("nothing", lambda _: report_of(Gate.at_most("far", 9.0, 2.0)), []) == 1
    printed = capsys.readouterr().out
    assert "measured nothing  wall_ms 1.5" in printed
    assert "FAIL  far  9.0  (target 2.0)" in printed


@pytest.mark.parametrize("arguments", [[], ["--quick"]])
def test_quick_reaches_the_measurement(arguments: list[str]) -> None:
    """A benchmark itself decides what to leave out."""
    asked: list[bool] = []

    def measure(is_quick: bool) -> Report:  # noqa: FBT001
        asked.append(is_quick)
        return report_of()

    run_benchmark("nothing", measure, arguments)
    assert asked == [bool(arguments)]


def test_a_ratio_is_taken_round_by_round() -> None:
    """A round in which everything was slow counts like any other."""
    assert median_ratio([1.0, 10.0, 1.0], [2.0, 20.0, 4.0]) == 0.5
