from __future__ import annotations

from typing import Any

import pytest

from mlxm.engine.plan import Chunk, Outcome, Plan, Row
from mlxm.testing.runner import Costs, IllegalPlan, ManualClock, ScriptedRunner, facts_of, scripted_token

PROMPT = tuple(range(40))


def runner(**facts: Any) -> ScriptedRunner:
    """A runner with a sequence 1 whose prompt is computed in blocks 1 and 2."""
    made = ScriptedRunner(facts_of(num_blocks=8, **facts))
    made.launch(Plan(chunks=(Chunk(sequence=1, start=0, tokens=PROMPT[:-1], table=(1, 2)),)))
    assert made.collect() == Outcome(tokens=())
    return made


def row(**changes: Any) -> Row:
    """The first row of sequence 1."""
    return Row(**{"sequence": 1, "position": 39, "token": PROMPT[-1], "table": (1, 2), "seed": 3} | changes)


def chunk(**changes: Any) -> Chunk:
    """A chunk of a new sequence 2."""
    return Chunk(**{"sequence": 2, "start": 0, "tokens": (7, 8), "table": (3,)} | changes)


def token_of(made: ScriptedRunner, *rows: Row, **plan: Any) -> tuple[int, ...]:
    """What a step answers."""
    made.launch(Plan(rows=rows, **plan))
    return made.collect().tokens


def test_the_next_token_is_a_function_of_the_tokens_in_the_blocks() -> None:
    """Whether a row's token is named, or left on the device by the row before."""
    named, left = runner(), runner()
    first = scripted_token(PROMPT, 3)
    second = scripted_token((*PROMPT, first), 3)
    assert token_of(named, row()) == token_of(left, row()) == (first,)
    assert token_of(named, row(position=40, token=first)) == token_of(left, row(position=40, token=None)) == (second,)


def test_a_block_can_be_copied_shared_and_read_by_another() -> None:
    """A fork reads what its parent wrote, and writes to its own copy."""
    made = runner()
    fork = row(sequence=2, table=(1, 5), seed=4)
    tokens = token_of(made, row(), fork, copies=((2, 5),))
    assert tokens == (scripted_token(PROMPT, 3), scripted_token(PROMPT, 4))


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (Plan(), "empty plan"),
        (Plan(chunks=(chunk(tokens=()),)), "empty chunk"),
        (Plan(rows=(row(), row(sequence=2))), "more rows"),
        (Plan(rows=(row(),), chunks=(chunk(sequence=1, start=39),)), "there twice"),
        (Plan(rows=(row(table=(1,)),)), "too short"),
        (Plan(rows=(row(table=(1, 2, 2)),)), "a block twice"),
        (Plan(rows=(row(table=(1, 2, 0)),)), "scratch"),
        (Plan(rows=(row(position=38),)), "goes on at 38, not at 39"),
        (Plan(rows=(row(position=40),)), "goes on at 40, not at 39"),
        (Plan(rows=(row(token=None),)), "no token at 39 yet"),
        (Plan(chunks=(chunk(table=(2,)),)), "writes to block 2, which is shared"),
        (Plan(rows=(row(),), copies=((1, 2), (1, 5))), "not one sequence's own"),
        (Plan(rows=(row(),), wipes=(2,)), "is wiped"),
        (Plan(chunks=(chunk(start=33, table=(1, 3)),)), "position 32 of sequence 2 holds what belongs elsewhere"),
        (Plan(rows=(row(table=(2, 1)),)), "which|belongs elsewhere"),
    ],
)
def test_a_plan_that_breaks_the_contract_is_a_bug(plan: Plan, words: str) -> None:
    """Not something that a sequence could be blamed for."""
    made = runner(max_rows=1)
    with pytest.raises(IllegalPlan, match=words):
        made.launch(plan)
    assert not issubclass(IllegalPlan, Exception)


def test_a_row_goes_on_with_the_token_that_was_sampled() -> None:
    """Another one would be the engine's mistake."""
    made = runner()
    token = token_of(made, row())[0]
    with pytest.raises(IllegalPlan, match="another token"):
        made.launch(Plan(rows=(row(position=40, token=token + 1),)))


def test_nothing_is_collected_that_was_not_launched() -> None:
    """Each step once."""
    with pytest.raises(IllegalPlan, match="nothing to collect"):
        runner().collect()


def test_a_forgotten_sequence_starts_where_its_blocks_end_or_at_nothing() -> None:
    """By whether prefixes are shared."""
    sharing, private = runner(), runner(shares_prefixes=False)
    for made in (sharing, private):
        assert made.num_known == 1
        made.forget(1)
        made.forget(1)
        assert made.num_known == 0
    assert token_of(sharing, row()) == (scripted_token(PROMPT, 3),)
    with pytest.raises(IllegalPlan, match="goes on at 39, not at 0"):
        private.launch(Plan(rows=(row(),)))


def test_numbers_that_are_not_finite_spread_to_who_reads_them() -> None:
    """Also from places of a block that nothing valid was written to yet, until it is wiped."""
    made = runner()
    made.faults.chunk = lambda chunk: chunk.sequence == 2
    made.faults.row = lambda row: row.sequence == 1
    made.launch(Plan(rows=(row(),), chunks=(chunk(tokens=(7, 8, 9)),)))
    outcome = made.collect()
    assert (outcome.failed_rows, outcome.failed_chunks) == ((0,), (0,))
    made.forget(2)
    made.launch(Plan(chunks=(chunk(sequence=3, tokens=(7,)), chunk(sequence=4, table=(4,)))))
    assert made.collect().failed_chunks == (0,)
    made.forget(3)
    made.launch(Plan(chunks=(chunk(sequence=5, tokens=(7,)),), wipes=(3,)))
    assert made.collect().failed_chunks == ()
    assert made.tally.num_wipes == 1


@pytest.mark.parametrize("stage", ["launch", "collect"])
def test_a_step_that_fails_is_left_half_written(stage: str) -> None:
    """And when collecting fails, so is every step launched after it."""
    made = runner()

    def fail(_plan: Plan) -> None:
        raise OSError

    setattr(made.faults, stage, fail)
    if stage == "collect":
        made.launch(Plan(rows=(row(),)))
        made.launch(Plan(chunks=(chunk(),)))
    with pytest.raises(OSError):  # noqa: PT011  (it has no text)
        made.collect() if stage == "collect" else made.launch(Plan(rows=(row(),)))
    setattr(made.faults, stage, lambda _plan: None)
    with pytest.raises(IllegalPlan, match="nothing to collect"):
        made.collect()
    made.forget(1)
    made.launch(Plan(chunks=(Chunk(sequence=1, start=32, tokens=PROMPT[32:38], table=(1, 2)),)))
    assert made.collect().failed_chunks == (0,)


def test_time_passes_as_the_costs_say() -> None:
    """On a clock that nothing else moves."""
    clock = ManualClock(5.0)
    costs = Costs(chunks_s=1.0, chunk_token_s=0.1, rows_s=2.0, row_s=0.5)
    made = ScriptedRunner(facts_of(), costs=costs, clock=clock)
    made.launch(Plan(chunks=(Chunk(sequence=1, start=0, tokens=(1, 2), table=(1,)),)))
    assert made.collect() == Outcome(tokens=(), chunks_s=1.2)
    made.launch(Plan(rows=(Row(sequence=1, position=2, token=3, table=(1,)),)))
    assert made.collect().rows_s == 2.5
    assert clock() == pytest.approx(5.0 + 1.2 + 2.5)
    assert (made.tally.num_launched, made.tally.num_collected, made.tally.max_rows) == (2, 2, 1)
