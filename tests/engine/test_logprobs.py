from __future__ import annotations

from typing import Any

import pytest

from mlxm.engine.plan import Row
from mlxm.frames import Delta
from mlxm.testing.runner import scripted_logprob, scripted_logprobs
from mlxm.types import Likely, Sampling, TokenLogprobs
from tests.engine.harness import SEED, Harness, character, prompt_of, scripted

RUNNERS = pytest.mark.parametrize(
    "facts",
    [{}, {"runs_ahead": True}, {"takes_runs": False}, {"shares_prefixes": False, "takes_runs": False}],
    ids=["plain", "ahead", "no-runs", "alone"],
)


def described(tokens: tuple[int, ...], num_top: int) -> TokenLogprobs:
    """What must be said of the last of some tokens."""
    found = scripted_logprobs(tokens[:-1], tokens[-1], num_top)
    top = tuple(Likely(token_id, character(token_id).encode(), logprob) for token_id, logprob in found.top)
    return TokenLogprobs(tokens[-1], character(tokens[-1]).encode(), found.logprob, top)


def prompt_logprobs(harness: Harness, name: str) -> list[TokenLogprobs]:
    """What was said of the prompt, all of it before everything else."""
    deltas = [event for event in harness.of(name) if isinstance(event, Delta)]
    of_prompt = [delta for delta in deltas if not delta.token_ids]
    assert deltas[: len(of_prompt)] == of_prompt
    assert all((delta.text, delta.finish_reason, delta.choice) == ("", None, 0) for delta in of_prompt)
    assert [delta.seq for delta in deltas] == list(range(len(deltas)))
    return [entry for delta in of_prompt for entry in delta.logprobs]


def expected_of(prompt: tuple[int, ...], num_top: int = 0) -> list[TokenLogprobs]:
    """What must be said of a prompt."""
    first = TokenLogprobs(prompt[0], character(prompt[0]).encode(), None)
    return [first, *(described(prompt[: end + 1], num_top) for end in range(1, len(prompt)))]


@RUNNERS
def test_each_token_comes_with_its_logprobs(facts: dict[str, Any]) -> None:
    """Of those that ask for them; the others get none."""
    harness, prompt = Harness(**facts), prompt_of(40)
    harness.add("quiet", prompt_of(40, 1), 9)
    harness.add("asks", prompt, 9, num_logprobs=3)
    harness.add("chosen", prompt, 9, num_logprobs=0)
    harness.run().check_idle()
    tokens = scripted(prompt, 9)
    for name, num_top in (("asks", 3), ("chosen", 0)):
        said = [entry for delta in harness.deltas(name) for entry in delta.logprobs]
        assert said == [described((*prompt, *tokens[: end + 1]), num_top) for end in range(9)]
    assert [delta.logprobs for delta in harness.deltas("quiet")] == [()] * 9


@RUNNERS
@pytest.mark.parametrize("num_prompt", [1, 2, 32, 33, 100])
def test_a_prompts_logprobs_come_first(facts: dict[str, Any], num_prompt: int) -> None:
    """Whoever computes beside it, and whatever is cached."""
    harness, prompt = Harness(**facts), prompt_of(num_prompt)
    harness.add("before", prompt, 3)
    harness.run()
    harness.add("other", prompt_of(50, 3), 20)
    harness.add("scored", prompt, 3, prompt_logprobs=True, num_logprobs=2)
    harness.add("plain", prompt, 3, prompt_logprobs=True)
    harness.run().check_idle()
    assert prompt_logprobs(harness, "scored") == expected_of(prompt, 2)
    assert prompt_logprobs(harness, "plain") == expected_of(prompt)
    assert [delta.logprobs for delta in harness.deltas("plain") if delta.token_ids] == [()] * 3
    harness.check_answers(
        [("before", prompt, 3), ("scored", prompt, 3), ("plain", prompt, 3), ("other", prompt_of(50, 3), 20)]
    )
    end = harness.end("scored")
    assert (end.usage.prompt_tokens, end.usage.completion_tokens, end.usage.cached_tokens) == (num_prompt, 3, 0)


@RUNNERS
def test_a_prompt_is_scored_once_for_all_choices(facts: dict[str, Any]) -> None:
    """The other choices begin when that is done."""
    harness, prompt = Harness(**facts), prompt_of(70)
    harness.add("one", prompt, 4, prompt_logprobs=True, num_choices=3)
    harness.run().check_idle()
    assert prompt_logprobs(harness, "one") == expected_of(prompt)
    for choice in range(3):
        assert harness.tokens("one", choice) == scripted(prompt, 4, choice=choice)


@RUNNERS
@pytest.mark.parametrize("num_prompt", [1, 3, 40])
def test_choices_begin_also_when_the_first_is_complete_with_the_score(facts: dict[str, Any], num_prompt: int) -> None:
    """A short prompt is scored, and the first choice's only token made, within one step."""
    harness, prompt = Harness(**facts), prompt_of(num_prompt)
    harness.add("one", prompt, 1, prompt_logprobs=True, num_choices=3)
    harness.run(200).check_idle()
    for choice in range(3):
        assert harness.tokens("one", choice) == scripted(prompt, 1, choice=choice)
    harness.end("one")


def test_a_run_ends_with_its_block_and_leaves_room_for_others() -> None:
    """So that a step stays short."""
    harness = Harness()
    for number in range(4):
        harness.add(f"r{number}", prompt_of(100, number), 1, prompt_logprobs=True)
    harness.run()
    lengths = [sum(row.sequence == 1 for row in plan.rows) for plan in harness.runner.plans]
    assert max(len(plan.rows) for plan in harness.runner.plans) <= 32
    assert sum(lengths) == 100
    assert max(lengths) == 8


@RUNNERS
@pytest.mark.parametrize("when", [0, 1, 2, 5])
def test_a_lost_step_says_nothing_twice(facts: dict[str, Any], when: int) -> None:
    """What was said of a prompt stays said."""
    harness = Harness(**facts)
    prompts = {f"r{number}": prompt_of(80, number) for number in range(3)}
    steps = iter(range(10_000))

    def fail(_plan: object) -> None:
        if next(steps) == when:
            raise RuntimeError("lost")

    harness.runner.faults.collect = fail
    for name, prompt in prompts.items():
        harness.add(name, prompt, 3, prompt_logprobs=True)
    harness.run().check_idle()
    for name, prompt in prompts.items():
        assert prompt_logprobs(harness, name) == expected_of(prompt)
    harness.check_answers([(name, prompt, 3) for name, prompt in prompts.items()])


def test_a_preempted_prompt_goes_on_being_scored() -> None:
    """It begins again, and says only what it has not said."""
    harness = Harness(num_blocks=7, max_rows=4, takes_runs=False)
    harness.add("old", prompt_of(20), 60)
    harness.step(2)
    harness.add("scored", prompt_of(90, 1), 5, prompt_logprobs=True)
    harness.add("third", prompt_of(20, 2), 30)
    harness.run().check_idle()
    assert prompt_logprobs(harness, "scored") == expected_of(prompt_of(90, 1))
    harness.check_answers(
        [("old", prompt_of(20), 60), ("scored", prompt_of(90, 1), 5), ("third", prompt_of(20, 2), 30)]
    )


def test_numbers_of_a_prompt_that_are_not_finite_end_its_request() -> None:
    """And no other."""
    harness = Harness()
    harness.add("bad", prompt_of(50), 3, prompt_logprobs=True)
    harness.add("good", prompt_of(50, 1), 3, prompt_logprobs=True)
    harness.runner.faults.row = lambda row: row.sequence == 1 and row.position == 40
    harness.run().check_idle()
    assert harness.end("bad").fault is not None
    assert prompt_logprobs(harness, "good") == expected_of(prompt_of(50, 1))


# ── choosing ─────────────────────────────────────────────────────────────────────────────────────

PENALTIES = [
    {"repetition_penalty": 1.1},
    {"presence_penalty": 0.5},
    {"frequency_penalty": -0.5},
]


@pytest.mark.parametrize("penalty", PENALTIES, ids=lambda penalty: next(iter(penalty)))
def test_who_chooses_by_what_was_said_waits_for_it(penalty: dict[str, float]) -> None:
    """The others run ahead as before."""
    harness = Harness(runs_ahead=True)
    harness.add("waits", prompt_of(10), 9, sampling=Sampling(**penalty))
    harness.add("runs", prompt_of(10, 1), 9)
    harness.run().check_idle()
    harness.check_answers([("waits", prompt_of(10), 9), ("runs", prompt_of(10, 1), 9)])
    rows = [row for plan in harness.runner.plans for row in plan.rows]
    assert all(row.token is not None for row in rows if row.sequence == 1)
    assert any(row.token is None for row in rows if row.sequence == 2)


def test_a_neutral_penalty_waits_for_nothing() -> None:
    """It changes no logit."""
    harness = Harness(runs_ahead=True)
    harness.add("runs", prompt_of(10), 9, sampling=Sampling(repetition_penalty=1.0))
    harness.run()
    assert any(row.token is None for plan in harness.runner.plans for row in plan.rows)


def test_a_row_knows_its_sequence() -> None:
    """All tokens so far, and which of them are the prompt's."""
    harness, seen = Harness(), []

    def look(row: Row) -> bool:
        seen.append((list(row.tokens), row.num_prompt, row.position))
        return False

    harness.runner.faults.row = look
    harness.add("one", prompt_of(10), 4)
    harness.run()
    tokens = (*prompt_of(10), *scripted(prompt_of(10), 4))
    assert seen == [(list(tokens[:end]), 10, end - 1) for end in range(10, 14)]


@RUNNERS
def test_an_answer_does_not_end_before_its_least_length(facts: dict[str, Any]) -> None:
    """Neither by the model's stop tokens nor by the request's."""
    prompt = prompt_of(10)
    first, second = scripted(prompt, 2)
    order: dict[str, Any] = {"stop_ids": frozenset({first, 999}), "extra_stop_ids": frozenset({second, -1})}
    harness = Harness(**facts)
    harness.add("short", prompt, 50, **order)
    harness.add("long", prompt, 50, sampling=Sampling(min_tokens=8), **order)
    harness.run().check_idle()
    assert harness.tokens("short") == (first,)
    assert not {first, second} & set(harness.tokens("long")[:8])
    banned = [row.banned_ids for plan in harness.runner.plans for row in plan.rows if row.sequence == 2]
    assert banned[:9] == [tuple(sorted({first, second}))] * 8 + [()]


def test_the_models_end_can_be_a_token_like_others() -> None:
    """The request's own stop tokens still end the answer."""
    prompt = prompt_of(10)
    tokens = scripted(prompt, 9)
    harness = Harness()
    harness.add("one", prompt, 9, stop_ids=frozenset({tokens[1]}), sampling=Sampling(ignore_eos=True))
    ends = {"stop_ids": frozenset({tokens[1]}), "extra_stop_ids": frozenset({tokens[4]})}
    harness.add("two", prompt, 9, sampling=Sampling(ignore_eos=True), **ends)
    harness.run().check_idle()
    assert harness.tokens("one") == tokens
    assert harness.tokens("two") == tokens[:5]
    assert harness.deltas("two")[-1].finish_reason == "stop"


@pytest.mark.parametrize(
    ("order", "param"),
    [
        ({"num_logprobs": 21}, "top_logprobs"),
        ({"num_logprobs": -1}, "top_logprobs"),
        ({"sampling": Sampling(logit_bias=((256, 1.0),))}, "logit_bias"),
        ({"sampling": Sampling(logit_bias=((-1, 1.0),))}, "logit_bias"),
        ({"sampling": Sampling(logit_bias=((1, float("nan")),))}, "logit_bias"),
        ({"sampling": Sampling(temperature=-0.1)}, "temperature"),
        ({"sampling": Sampling(temperature=float("inf"))}, "temperature"),
        ({"sampling": Sampling(top_p=1.5)}, "top_p"),
        ({"sampling": Sampling(min_p=float("nan"))}, "min_p"),
        ({"sampling": Sampling(repetition_penalty=0.0)}, "repetition_penalty"),
        ({"sampling": Sampling(frequency_penalty=1e9)}, "frequency_penalty"),
    ],
)
def test_what_would_break_the_device_is_refused(order: dict[str, Any], param: str) -> None:
    """With the parameter's name, before anything is computed."""
    harness = Harness()
    harness.add("one", prompt_of(5), **order)
    fault = harness.end("one").fault
    assert fault is not None
    assert (fault.code, fault.param) == ("invalid_request", param)
    harness.check_idle()


def test_scripted_logprobs_tell_tokens_apart() -> None:
    """Else the tests above could not fail."""
    tokens = scripted(prompt_of(10), 9, seed=SEED)
    assert len({scripted_logprob(tokens[:end], tokens[end]) for end in range(9)}) > 5
