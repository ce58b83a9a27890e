from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import make_prompt_cache

from mlxm.device.batch_caches import BatchCacheRunner
from mlxm.device.paged import PagedStore
from mlxm.device.runner import PagedRunner
from mlxm.device.sampler import Sampled, Sampler
from mlxm.engine.plan import Chunk, Plan, Row, Runner, RunnerFacts
from mlxm.errors import InternalError
from mlxm.types import Sampling
from tests.device.driver import GREEDY, make_runner, make_store, prompt, tiny
from tests.device.sampling_reference import log_softmax

FACTS = RunnerFacts(
    kind="test", why="", num_blocks=1000, max_rows=8, shares_prefixes=False, runs_ahead=False, block_bytes=0
)
PROMPT = prompt(40)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny model."""
    return tiny("llama", tmp_path_factory.mktemp("models")).model


@pytest.fixture(params=["paged", "batch caches"])
def runner(request: pytest.FixtureRequest, model: Any) -> Runner:
    """Either kind of runner over the model."""
    if request.param == "paged":
        return make_runner(make_store(PagedStore, model))
    return BatchCacheRunner(model, Sampler(), FACTS, batches=True)


def row(sequence: int, tokens: Sequence[int], sampling: Sampling = GREEDY, **facts: Any) -> Row:
    """The row of a sequence's last token."""
    return Row(
        sequence=sequence,
        position=len(tokens) - 1,
        token=tokens[-1],
        table=[2 * sequence + 1, 2 * sequence + 2],
        sampling=sampling,
        tokens=tokens,
        num_prompt=len(PROMPT),
        **facts,
    )


def read_prompts(runner: Runner, *sequences: int) -> None:
    """Compute the prompt of each sequence up to its last token."""
    for each in sequences:
        table = [2 * each + 1, 2 * each + 2]
        runner.launch(Plan(chunks=(Chunk(sequence=each, start=0, tokens=PROMPT[:-1], table=table),)))
        runner.collect()


def test_logprobs_are_those_of_the_models_own_logits(runner: Runner, model: Any) -> None:
    """Of the rows that want them, however they are sampled; of the target where one is given."""
    read_prompts(runner, 0, 1, 2)
    warm = Sampling(temperature=1.5, top_k=30, repetition_penalty=1.2)
    rows = (
        row(0, PROMPT, warm, num_logprobs=5, seed=3),
        row(1, PROMPT),
        row(2, PROMPT, num_logprobs=0, target=77),
    )
    runner.launch(Plan(rows=rows))
    outcome = runner.collect()
    logits = np.array(model(mx.array([PROMPT]), cache=make_prompt_cache(model))[0, -1])
    expected = log_softmax(logits.astype(np.float64))
    chosen, nothing, target = outcome.logprobs
    assert outcome.failed_rows == ()
    assert chosen is not None
    assert chosen.logprob == pytest.approx(expected[outcome.tokens[0]], abs=1e-3)
    assert [token for token, _ in chosen.top] == np.argsort(-expected)[:5].tolist()
    assert [value for _, value in chosen.top] == pytest.approx(np.sort(expected)[::-1][:5], abs=1e-3)
    assert nothing is None
    assert target is not None
    assert target.logprob == pytest.approx(expected[77], abs=1e-3)


def test_a_row_that_may_choose_nothing_fails_alone(runner: Runner) -> None:
    """Its neighbours get their tokens, and no logprobs are handed out that nobody wanted."""
    read_prompts(runner, 0, 1, 2)
    runner.launch(Plan(rows=(row(0, PROMPT), row(1, PROMPT, mask=b""), row(2, PROMPT, mask=b"\0" * 10 + b"\x08"))))
    outcome = runner.collect()
    assert outcome.failed_rows == (1,)
    assert outcome.logprobs == ()
    assert outcome.tokens[2] == 83


def test_penalties_follow_a_sequence_until_it_is_forgotten(runner: Runner) -> None:
    """What was chosen once is not chosen again; another sequence of that number starts without a past."""
    once = Sampling(temperature=0.0, presence_penalty=1000.0)
    answers = []
    for _ in range(2):
        read_prompts(runner, 0)
        tokens = list(PROMPT)
        for _ in range(12):
            runner.launch(Plan(rows=(row(0, tokens, once),)))
            tokens.append(runner.collect().tokens[0])
        runner.forget(0)
        answers.append(tokens[len(PROMPT) :])
    assert len(set(answers[0])) == 12
    assert answers[0] == answers[1]


def test_chunks_alone_have_no_tokens(model: Any) -> None:
    """Nor logprobs, nor rows that fail."""
    runner = make_runner(make_store(PagedStore, model))
    runner.launch(Plan(chunks=(Chunk(sequence=0, start=0, tokens=PROMPT, table=[1, 2]),)))
    outcome = runner.collect()
    assert (outcome.tokens, outcome.logprobs, outcome.failed_rows, outcome.failed_chunks) == ((), (), (), ())


def test_a_token_that_is_still_on_the_device_is_read_there(runner: Runner) -> None:
    """Steps launched ahead give what they give one by one, also beside a row whose token is known."""
    warm = Sampling(temperature=1.2, top_p=0.8)
    alone = []
    read_prompts(runner, 0)
    tokens = list(PROMPT)
    for _ in range(3):
        runner.launch(Plan(rows=(row(0, tokens, warm),)))
        tokens.append(runner.collect().tokens[0])
        alone.append(tokens[-1])
    runner.forget(0)
    read_prompts(runner, 0, 1)
    runner.launch(Plan(rows=(row(0, PROMPT, warm),)))
    ahead = {"token": None, "tokens": PROMPT, "num_prompt": len(PROMPT), "sampling": warm}
    second = Row(sequence=0, position=len(PROMPT), table=[1, 2], **ahead)
    runner.launch(Plan(rows=(row(1, PROMPT), second)))
    runner.launch(Plan(rows=(Row(sequence=0, position=len(PROMPT) + 1, table=[1, 2], **ahead),)))
    assert [runner.collect().tokens[-1] for _ in range(3)] == alone


def test_a_row_cannot_wait_for_a_token_that_nobody_samples(model: Any) -> None:
    """It says so instead of reading any other token."""
    runner = make_runner(make_store(PagedStore, model))
    read_prompts(runner, 0)
    with pytest.raises(InternalError, match="waits for a token"):
        runner.launch(Plan(rows=(Row(sequence=0, position=39, token=None, table=[1, 2]),)))


def test_steps_are_lost_when_collecting_fails(model: Any) -> None:
    """None of those launched before is handed out afterwards in place of a new one."""

    class Broken(Sampler):
        def __call__(self, _logits: mx.array, _rows: Sequence[Row]) -> Sampled:
            return Sampled(tokens=mx.array([[1, 2]]), are_valid=mx.array([True]))

    store = make_store(PagedStore, model)
    runner = PagedRunner(store, Broken(), FACTS)
    read_prompts(runner, 0)
    runner.launch(Plan(rows=(row(0, PROMPT),)))
    runner.launch(Plan(rows=(row(0, PROMPT),)))
    with pytest.raises(TypeError):
        runner.collect()
    with pytest.raises(IndexError):
        runner.collect()
