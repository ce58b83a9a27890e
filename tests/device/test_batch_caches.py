import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import QuantizedKVCache, make_prompt_cache
from mlx_lm.utils import load_model

from mlxm.device.batch_build import ALONE_KIND, BATCHED_KIND, build_batch_cache_runner, measure_footprint
from mlxm.device.batch_caches import BatchCacheRunner
from mlxm.device.batch_check import find_batching_fault
from mlxm.device.cache_batch import find_unmergeable
from mlxm.device.sampler import Sampled, Sampler
from mlxm.engine.plan import Chunk, Plan, Row, RunnerFacts
from mlxm.errors import InternalError, OutOfMemory
from tests.device.driver import tiny, tiny_folders

NAMES = ("qwen3", "gpt_oss", "qwen3_next", "falcon_h1", "llama4", "afm7", "gemma2")
FACTS = RunnerFacts(
    kind="test", why="", num_blocks=1000, max_rows=8, shares_prefixes=False, runs_ahead=False, block_bytes=0
)
Prompts = Mapping[int, Sequence[int]]


@pytest.fixture(scope="module")
def models(folder: Path) -> Mapping[str, Any]:
    """Tiny models by architecture."""
    return {name: tiny(name, folder).model for name in NAMES}


def prompt_of(length: int, seed: int = 0) -> list[int]:
    """Random ordinary tokens."""
    numbers = random.Random(seed * 1000 + length)
    return [numbers.randrange(10, 1000) for _ in range(length)]


def alone(model: Any, prompt: Sequence[int], num_tokens: int) -> list[int]:
    """What mlx-lm answers."""
    return [int(token) for token, _ in generate_step(mx.array(list(prompt)), model, max_tokens=num_tokens)]


class Driver:
    """Runs prompts on a runner, and remembers what was sampled."""

    def __init__(self, model: Any, *, batches: bool = True, facts: RunnerFacts = FACTS) -> None:
        self.widths: list[int] = []
        self._model = model
        self.runner = BatchCacheRunner(self, Sampler(0.0), facts, batches=batches)
        self.tokens: dict[int, list[int]] = {}
        self.lengths: dict[int, int] = {}

    def __getattr__(self, name: str) -> Any:
        """The model's own attributes, `layers` above all."""
        return getattr(self._model, name)

    def __call__(self, inputs: mx.array, cache: Any) -> mx.array:
        """The model; how wide the batch was is remembered."""
        self.widths.append(inputs.shape[0])
        logits: mx.array = self._model(inputs, cache=cache)
        return logits

    def begin(self, prompts: Prompts) -> None:
        """Compute prompts up to their last tokens."""
        self.tokens |= {sequence: [] for sequence in prompts}
        self.lengths |= {sequence: len(prompt) for sequence, prompt in prompts.items()}
        self._last = {sequence: prompt[-1] for sequence, prompt in prompts.items()}
        chunks = [
            Chunk(sequence=sequence, start=0, tokens=prompt[:-1], table=())
            for sequence, prompt in prompts.items()
            if len(prompt) > 1
        ]
        self.run(Plan(chunks=tuple(chunks)))

    def run(self, plan: Plan) -> None:
        """Launch and collect a plan."""
        self.runner.launch(plan)
        outcome = self.runner.collect()
        assert (outcome.failed_rows, outcome.failed_chunks) == ((), ())
        for row, token in zip(plan.rows, outcome.tokens, strict=True):
            self.tokens[row.sequence].append(token)

    def step(self, *sequences: int) -> None:
        """A row for each."""
        self.widths.clear()
        self.run(Plan(rows=tuple(map(self.row, sequences))))

    def row(self, sequence: int) -> Row:
        """The sequence's next row."""
        tokens = self.tokens[sequence]
        position = self.lengths[sequence] - 1 + len(tokens)
        token = tokens[-1] if tokens else self._last[sequence]
        return Row(sequence=sequence, position=position, token=token, table=())


@pytest.mark.parametrize("name", ["qwen3", "gpt_oss", "qwen3_next", "falcon_h1"])
def test_rows_in_a_batch_get_what_they_get_alone(models: Mapping[str, Any], name: str) -> None:
    """While sequences join at other lengths, sit out, come back and leave; in whatever order the rows stand."""
    prompts = {1: prompt_of(1), 2: prompt_of(33), 3: prompt_of(7), 4: prompt_of(64)}
    driver = Driver(models[name])
    driver.begin(prompts)
    steps = [(1, 2), (1, 2), (2, 1, 3), (3,), (2, 3, 4), (4, 1, 2, 3), (1, 3, 4), (2, 4)]
    for _ in range(3):
        for sequences in steps:
            driver.step(*sequences)
    driver.runner.forget(4)
    driver.step(3, 2, 1)
    assert driver.widths == [3]
    expected = {
        sequence: alone(models[name], prompt, len(driver.tokens[sequence])) for sequence, prompt in prompts.items()
    }
    assert expected == driver.tokens


def test_a_batch_is_one_forward_and_a_sequence_without_state_joins_after_its_first_row(
    models: Mapping[str, Any],
) -> None:
    """And a single row needs no batch."""
    driver = Driver(models["qwen3_next"])
    driver.begin({1: prompt_of(1), 2: prompt_of(5), 3: prompt_of(6)})
    driver.step(1, 2, 3)
    assert sorted(driver.widths) == [1, 2]
    driver.step(1, 2, 3)
    assert driver.widths == [3]
    driver.step(2)
    assert driver.widths == [1]


def test_without_batches_rows_are_computed_one_at_a_time(models: Mapping[str, Any]) -> None:
    """For models that are wrong in a batch, or whose caches have no batch form."""
    prompts = {1: prompt_of(20), 2: prompt_of(40)}
    driver = Driver(models["llama4"], batches=False)
    driver.begin(prompts)
    for _ in range(12):
        driver.step(1, 2)
        assert driver.widths == [1, 1]
    assert {sequence: alone(models["llama4"], prompt, 12) for sequence, prompt in prompts.items()} == driver.tokens


def test_a_batch_is_never_padded_beyond_the_blocks_there_are(models: Mapping[str, Any]) -> None:
    """The longest rows are computed alone instead."""
    facts = RunnerFacts(
        kind="test", why="", num_blocks=4, max_rows=8, shares_prefixes=False, runs_ahead=False, block_bytes=0
    )
    prompts = {1: prompt_of(97), 2: prompt_of(5), 3: prompt_of(6)}
    driver = Driver(models["qwen3"], facts=facts)
    driver.begin(prompts)
    for _ in range(8):
        driver.step(1, 2, 3)
        assert sorted(driver.widths) == [1, 2]
    assert {sequence: alone(models["qwen3"], prompt, 8) for sequence, prompt in prompts.items()} == driver.tokens


def test_several_rows_of_a_sequence_are_one_forward(models: Mapping[str, Any]) -> None:
    """Each row gets the token that follows it, beside rows of other sequences."""
    prompts = {1: prompt_of(9), 2: prompt_of(12), 3: prompt_of(4)}
    expected = {sequence: alone(models["qwen3"], prompt, 6) for sequence, prompt in prompts.items()}
    driver = Driver(models["qwen3"])
    driver.begin(prompts)
    known = [prompts[1][-1], *expected[1][:2]]
    ahead = [Row(sequence=1, position=8 + place, token=token, table=()) for place, token in enumerate(known)]
    driver.widths.clear()
    driver.run(Plan(rows=(driver.row(2), *ahead, driver.row(3))))
    assert sorted(driver.widths) == [1, 2]
    for _ in range(3):
        driver.step(1, 2, 3)
    assert expected[1] == driver.tokens[1]
    assert [expected[each][:4] for each in (2, 3)] == [driver.tokens[each] for each in (2, 3)]


def test_a_step_may_be_launched_before_the_tokens_of_the_last_one_are_known(models: Mapping[str, Any]) -> None:
    """A row without a token reads the one that the last step samples, on the device; one that was told goes along."""
    prompts = {1: prompt_of(9), 2: prompt_of(12)}
    driver = Driver(models["qwen3_next"])
    driver.begin(prompts)
    runner = driver.runner
    told = {sequence: alone(models["qwen3_next"], prompt, 4) for sequence, prompt in prompts.items()}
    runner.launch(Plan(rows=(driver.row(1), driver.row(2))))
    runner.launch(
        Plan(
            rows=(
                Row(sequence=1, position=9, token=None, table=()),
                Row(sequence=2, position=12, token=told[2][0], table=()),
            )
        )
    )
    assert [(told[1][0], told[2][0]), (told[1][1], told[2][1])] == [runner.collect().tokens, runner.collect().tokens]


def test_a_sequence_that_comes_again_begins_anew(models: Mapping[str, Any]) -> None:
    """Forgotten or not, position 0 is a new beginning; anything else has to fit to what is kept."""
    driver = Driver(models["qwen3_next"])
    driver.begin({1: prompt_of(9), 2: prompt_of(8)})
    driver.step(1, 2)
    driver.begin({1: prompt_of(5)})
    driver.runner.forget(2)
    driver.runner.forget(2)
    driver.step(1)
    assert alone(models["qwen3_next"], prompt_of(5), 1) == driver.tokens[1]
    with pytest.raises(InternalError, match="position 8, and its caches hold None tokens"):
        driver.step(2)


def test_what_is_not_finite_is_named_and_stays_with_its_sequence(models: Mapping[str, Any]) -> None:
    """A poisoned row and a poisoned prompt fail; the rows beside them go on as if nothing had been."""
    prompts = {1: prompt_of(9), 2: prompt_of(12), 3: prompt_of(30)}
    driver = Driver(models["qwen3_next"])
    driver.begin({each: prompts[each] for each in (1, 2)})
    driver.step(1, 2)
    model = models["qwen3_next"].model
    embedding = model.embed_tokens.weight
    poison = 7
    model.embed_tokens.weight = mx.where(mx.arange(embedding.shape[0])[:, None] == poison, float("nan"), embedding)
    row = Row(sequence=2, position=12, token=poison, table=())
    chunk = Chunk(sequence=3, start=0, tokens=[5, poison, 6], table=())
    driver.runner.launch(Plan(rows=(driver.row(1), row), chunks=(chunk,)))
    outcome = driver.runner.collect()
    model.embed_tokens.weight = embedding
    assert (outcome.failed_rows, outcome.failed_chunks) == ((1,), (0,))
    driver.tokens[1].append(outcome.tokens[0])
    for sequence in (2, 3):
        driver.runner.forget(sequence)
    driver.begin({3: prompts[3]})
    for _ in range(4):
        driver.step(1, 3)
    assert {each: alone(models["qwen3_next"], prompts[each], len(driver.tokens[each])) for each in (1, 3)} == {
        each: driver.tokens[each] for each in (1, 3)
    }


def test_steps_are_lost_when_collecting_fails(models: Mapping[str, Any]) -> None:
    """None of those launched before is handed out afterwards in place of a new one."""
    driver = Driver(models["qwen3"])
    driver.begin({1: prompt_of(4), 2: prompt_of(5)})
    broken = Sampled(tokens=mx.array([[1], [2]]), are_valid=mx.array([True, True]))
    driver.runner._sampler = lambda _logits, _rows: broken
    rows = tuple(map(driver.row, (1, 2)))
    driver.runner.launch(Plan(rows=rows))
    driver.runner.launch(
        Plan(rows=tuple(Row(sequence=r.sequence, position=r.position + 1, token=9, table=()) for r in rows))
    )
    with pytest.raises(TypeError):
        driver.runner.collect()
    with pytest.raises(IndexError):
        driver.runner.collect()


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("qwen3", None),
        ("gpt_oss", None),
        ("qwen3_next", None),
        ("falcon_h1", None),
        ("llama4", "no batch form of ChunkedKVCache"),
        ("gemma2", "does not run on batch caches: ValueError"),
        ("afm7", "logits are others in a batch"),
    ],
)
def test_a_model_that_is_wrong_in_a_batch_is_found_out(models: Mapping[str, Any], name: str, fault: str | None) -> None:
    """Whether it says so, or gives other tokens in silence."""
    found = find_batching_fault(models[name], vocab_size=1000)
    assert found is None if fault is None else found is not None and fault in found


@pytest.mark.parametrize(("name", "is_right"), [("qwen3", True), ("afm7", False)])
def test_half_precision_does_not_hide_a_wrong_batch(folder: Path, name: str, is_right: bool) -> None:  # noqa: FBT001
    """Its rounding is allowed for."""
    model, _ = load_model(tiny_folders(folder)[name])
    model.set_dtype(mx.bfloat16)
    assert (find_batching_fault(model, vocab_size=1000) is None) == is_right


def test_a_class_without_a_batch_form_is_found_inside_others(models: Mapping[str, Any]) -> None:
    """A list of caches is as good as each of them."""
    caches = make_prompt_cache(models["falcon_h1"])
    assert find_unmergeable(caches) is None
    caches[1].caches = (QuantizedKVCache(), *caches[1].caches)
    assert find_unmergeable(caches) == "QuantizedKVCache"


@pytest.mark.parametrize(
    ("name", "token_bytes", "sequence_bytes"),
    [
        ("qwen3", 3 * 2 * 2 * 16 * 4, 0),
        ("gpt_oss", 2 * 2 * 2 * 16 * 4, 2 * 2 * 2 * 16 * 4 * 16),
        ("llama4", 1 * 2 * 2 * 16 * 4, 3 * 2 * 2 * 16 * 4 * 16),
    ],
)
def test_what_a_sequence_takes_is_measured(
    models: Mapping[str, Any], name: str, token_bytes: int, sequence_bytes: int
) -> None:
    """Keys and values of every token, and windows of sixteen tokens whatever the length."""
    footprint = measure_footprint(models[name])
    assert (footprint.token_bytes, footprint.sequence_bytes) == (token_bytes, sequence_bytes)


def test_states_of_fixed_size_take_the_same_for_every_length(models: Mapping[str, Any]) -> None:
    """Beside the keys and values of the layers that have some."""
    next_ = measure_footprint(models["qwen3_next"])
    falcon = measure_footprint(models["falcon_h1"])
    assert next_.token_bytes == 2 * 2 * 16 * 4
    assert falcon.token_bytes == 3 * 2 * 2 * 16 * 4
    assert min(next_.sequence_bytes, falcon.sequence_bytes) > 1000


@pytest.mark.parametrize(("name", "kind"), [("qwen3_next", BATCHED_KIND), ("afm7", ALONE_KIND)])
def test_blocks_and_rows_keep_to_the_memory_given(models: Mapping[str, Any], name: str, kind: str) -> None:
    """And the runner says how it computes rows, and why."""

    def build(memory_bytes: int) -> RunnerFacts:
        sizes = {"vocab_size": 1000, "memory_bytes": memory_bytes, "max_rows": 8, "context_length": 320}
        return build_batch_cache_runner(models[name], Sampler(0.0), **sizes).facts

    roomy, tight = build(1 << 30), build(1 << 18)
    footprint = measure_footprint(models[name])
    assert (roomy.kind, roomy.max_rows, roomy.num_blocks, roomy.shares_prefixes) == (kind, 8, 1 + 8 * 10, False)
    assert roomy.why
    assert tight.num_blocks < roomy.num_blocks
    taken = (tight.num_blocks - 1) * 32 * footprint.token_bytes + tight.max_rows * footprint.sequence_bytes
    assert 3 * taken <= 1 << 18


@pytest.mark.parametrize("name", ["qwen3", "qwen3_next"])
def test_too_little_memory_for_one_sequence_is_said(models: Mapping[str, Any], name: str) -> None:
    """With what it takes and what there is, instead of a runner that can let nobody in."""
    sizes = {"vocab_size": 1000, "max_rows": 8, "context_length": 320}
    with pytest.raises(OutOfMemory, match=r"needs at least \d\.\d MB, and 0\.0 MB are left"):
        build_batch_cache_runner(models[name], Sampler(0.0), memory_bytes=1 << 12, **sizes)
    footprint = measure_footprint(models[name])
    least_bytes = 3 * (footprint.sequence_bytes + 32 * footprint.token_bytes)
    facts = build_batch_cache_runner(models[name], Sampler(0.0), memory_bytes=least_bytes, **sizes).facts
    assert (facts.max_rows, facts.num_blocks) >= (1, 2)
