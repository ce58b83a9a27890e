from __future__ import annotations

import pytest

from mlxm.engine.pace import Pace, PaceOptions
from mlxm.engine.plan import Outcome

OPTIONS = PaceOptions(max_chunk_tokens=1_000, min_chunk_tokens=10)


def measured(*, token_s: float, rows_s: float, beside_rows: bool = True) -> Pace:
    """A pace that has seen steps of this speed."""
    pace = Pace(OPTIONS)
    pace.measure(Outcome(tokens=(1,), rows_s=rows_s), num_chunk_tokens=0, num_rows=1)
    outcome = Outcome(tokens=(1,), rows_s=rows_s, chunks_s=token_s * 50)
    pace.measure(outcome, num_chunk_tokens=50, num_rows=int(beside_rows))
    return pace


def test_without_rows_a_step_is_as_large_as_it_may_be() -> None:
    """Nobody waits for a next token."""
    assert Pace(OPTIONS).chunk_tokens(num_rows=0, num_prompts=1) == 1_000


def test_before_anything_was_measured_a_step_is_small() -> None:
    """And also when a runner measures nothing."""
    assert Pace(OPTIONS).chunk_tokens(num_rows=1, num_prompts=1) == 10
    assert measured(token_s=0, rows_s=0).chunk_tokens(num_rows=1, num_prompts=1) == 10


@pytest.mark.parametrize("beside_rows", [True, False])
def test_a_step_takes_less_than_three_quiet_ones(beside_rows: bool) -> None:  # noqa: FBT001
    """One and three quarters of a quiet one are the prompt's, by the cost of tokens in whatever steps there were."""
    pace = measured(token_s=0.001, rows_s=0.05, beside_rows=beside_rows)
    assert pace.chunk_tokens(num_rows=4, num_prompts=1) == 88


def test_more_prompts_take_more() -> None:
    """Four take twice what one takes."""
    assert measured(token_s=0.001, rows_s=0.05).chunk_tokens(num_rows=4, num_prompts=4) == 175


@pytest.mark.parametrize(("token_s", "num_tokens"), [(1.0, 10), (1e-9, 1_000)])
def test_there_are_limits_on_both_sides(token_s: float, num_tokens: int) -> None:
    """Prompts never stand still, and no step is longer than one without rows."""
    assert measured(token_s=token_s, rows_s=0.05).chunk_tokens(num_rows=1, num_prompts=1) == num_tokens


def test_tokens_are_measured_apart_beside_rows() -> None:
    """Large chunks are cheaper, and say little about small ones."""
    pace = measured(token_s=0.002, rows_s=0.05)
    pace.measure(Outcome(tokens=(), chunks_s=0.5), num_chunk_tokens=1_000, num_rows=0)
    assert pace.chunk_tokens(num_rows=1, num_prompts=1) == 44


def test_the_pace_follows_what_it_sees() -> None:
    """Steps that become slower make room for fewer tokens soon."""
    pace = measured(token_s=0.001, rows_s=0.05)
    for _ in range(16):
        pace.measure(Outcome(tokens=(1,), chunks_s=0.1, rows_s=0.05), num_chunk_tokens=50, num_rows=1)
    assert pace.chunk_tokens(num_rows=1, num_prompts=1) in range(43, 47)
