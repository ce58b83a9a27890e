"""One sequence's failure, or its end, changes no token of the others: on real models, with every kind of runner."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest

from mlxm.device.batch_build import ALONE_KIND, BATCHED_KIND
from mlxm.device.loader import LoadedModel
from tests.device.driver import tiny
from tests.device.parity.faults import FailingRunner, Stage, Trap, TrappedSampler, poisoned, trapped
from tests.device.parity.harness import Served, Serving, answer_alone, note, open_kind, order_of, random_prompts

NUM_BLOCKS = 14
"""So few that blocks of those who leave are soon another one's."""
NUM_TOKENS = 8
POISON = 1001
PROMPTS = random_prompts((40, 1, 33))
BAD = random_prompts((70,), seed=9)["70"]
BAD_SEQUENCE = 3
"""It comes third."""
RUNNERS = pytest.mark.parametrize(
    ("name", "kind", "runs_ahead"),
    [
        ("llama", "paged in place", False),
        ("llama", "paged in place", True),
        ("gpt_oss", "paged in place", False),
        ("gemma3_text", "gathered rows", False),
        ("qwen3_next", BATCHED_KIND, False),
        ("llama4", ALONE_KIND, False),
    ],
    ids=["paged", "paged ahead", "paged windows", "gathered", "batch", "alone"],
)


@cache
def expected(name: str, folder: Path) -> Mapping[str, list[int]]:
    """What mlx-lm answers to the good ones."""
    model = tiny(name, folder).model
    return {request_id: answer_alone(model, prompt, NUM_TOKENS) for request_id, prompt in PROMPTS.items()}


def with_bad_one(bad: list[int]) -> dict[str, list[int]]:
    """The good ones with a bad one among them."""
    (first, second, *others) = PROMPTS.items()
    return dict((first, second, ("bad", bad), *others))


def assert_only_bad_failed(served: Served, good: Mapping[str, list[int]]) -> None:
    """The others have their own tokens, all of them."""
    assert list(served.faults) == ["bad"]
    assert {request_id: tokens for request_id, tokens in served.tokens.items() if request_id != "bad"} == good


@RUNNERS
@pytest.mark.parametrize("stage", ["launch", "half", "sample", "collect"])
def test_a_step_that_fails_ends_only_who_made_it_fail(
    folder: Path,
    name: str,
    kind: str,
    runs_ahead: bool,  # noqa: FBT001
    stage: Stage,
) -> None:
    """In its prompt or in its answer: before the step, within the layers, after them, or when it is waited for."""
    loaded = tiny(name, folder)
    half, sample = Trap(), Trap()
    runner = open_kind(loaded, kind, NUM_BLOCKS, runs_ahead=runs_ahead, sampler=TrappedSampler(sample))
    failing = FailingRunner(runner, {"half": half, "sample": sample})
    with trapped(loaded.model, half):
        serving = Serving(loaded, failing)
        for num_done, position in enumerate((73, 40)):
            if stage == "sample" and position < len(BAD):
                continue  # a prompt is not sampled
            failing.culprit = (stage, BAD_SEQUENCE + num_done * (1 + len(PROMPTS)), position)
            num_failures = failing.num_failures
            served = serving.serve(with_bad_one(BAD), NUM_TOKENS)
            assert failing.num_failures > num_failures
            assert_only_bad_failed(served, expected(name, folder))
            assert len(served.tokens["bad"]) == max(0, position - len(BAD) + 1)
            serving.check_idle()


@RUNNERS
@pytest.mark.parametrize("place", [30, 69], ids=["prompt", "row"])
def test_numbers_that_are_not_finite_end_only_whose_they_are(
    folder: Path,
    name: str,
    kind: str,
    runs_ahead: bool,  # noqa: FBT001
    place: int,
) -> None:
    """And whoever gets their blocks next is right as well."""
    loaded = tiny(name, folder)
    bad = [*BAD[:place], POISON, *BAD[place + 1 :]]
    with poisoned(loaded.model, POISON):
        serving = Serving(loaded, open_kind(loaded, kind, NUM_BLOCKS, runs_ahead=runs_ahead))
        for _ in range(2):
            served = serving.serve(with_bad_one(bad), NUM_TOKENS)
            assert_only_bad_failed(served, expected(name, folder))
            assert "not finite" in served.faults["bad"]
            serving.check_idle()


@RUNNERS
def test_cancelling_frees_everything_at_once_and_changes_nothing(
    folder: Path,
    name: str,
    kind: str,
    runs_ahead: bool,  # noqa: FBT001
) -> None:
    """Whenever it happens: waiting, within the prompt, at its end, in the answer."""
    loaded = tiny(name, folder)
    serving = Serving(loaded, open_kind(loaded, kind, NUM_BLOCKS, runs_ahead=runs_ahead))
    for num_steps in (0, 2, 5, 11):
        served = cancel_after(serving, num_steps)
        assert {request_id: served.tokens[request_id] for request_id in PROMPTS} == expected(name, folder)
        serving.check_idle()


def cancel_after(serving: Serving, num_steps: int) -> Served:
    """Serve everybody; the bad one, which comes first, is cancelled after some steps, before the last two come."""
    engine = serving.engine
    served = Served()
    requests = list(PROMPTS.items())
    engine.add(order_of("bad", random_prompts((70,), seed=num_steps)["70"], 40))
    for request in requests[:2]:
        engine.add(order_of(*request, NUM_TOKENS))
    for _ in range(num_steps):
        for event in engine.step():
            note(served, event)
    num_used = engine.stats.blocks_used
    for event in engine.cancel("bad", "enough"):
        note(served, event)
    assert engine.stats.blocks_used <= num_used - (num_steps > 0)
    for request in requests[2:]:
        engine.add(order_of(*request, NUM_TOKENS))
    while engine.has_work:
        for event in engine.step():
            note(served, event)
    return served


@pytest.mark.parametrize("kind", ["paged in place", "gathered rows"])
def test_a_model_is_left_as_it_was(folder: Path, kind: str) -> None:
    """What the other tests here plant is gone after them."""
    loaded: LoadedModel = tiny("llama", folder)
    served = Serving(loaded, open_kind(loaded, kind, NUM_BLOCKS)).serve(PROMPTS, NUM_TOKENS)
    assert (served.tokens, served.faults) == (expected("llama", folder), {})
