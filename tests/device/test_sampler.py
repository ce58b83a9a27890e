import random
from collections import Counter
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mlxm.device import truncation
from mlxm.device.sampler import Sampled, Sampler, chance
from mlxm.engine.plan import Row
from mlxm.types import Sampling
from tests.device import sampling_reference as reference

SIZES = (1, 7, 64, 257, 1000, 2111)


def row(seed: int = 0, position: int = 0, temperature: float | None = 0.0, **asked: Any) -> Row:
    """A row of which only the sampling matters."""
    facts = {name: asked.pop(name) for name in list(asked) if name in Row.__struct_fields__}
    sampling = Sampling(temperature=temperature, **asked)
    return Row(
        **{"sequence": 0, "position": position, "token": 0, "table": (), "seed": seed, "sampling": sampling, **facts}
    )


def tokens_of(sampled: Sampled) -> list[int]:
    """The tokens, on the host."""
    tokens: Any = sampled.tokens.tolist()
    return list(tokens)


def draw(logits: Any, rows: list[Row], sampler: Sampler | None = None) -> list[int]:
    """A token for each row of the logits, or of the same logits for all."""
    array = mx.array(logits)
    if array.ndim == 1:
        array = mx.broadcast_to(array, (len(rows), array.size))
    return tokens_of((Sampler() if sampler is None else sampler)(array, rows))


def random_logits(num_rows: int, size: int, *, seed: int = 0, scale: float = 3.0) -> NDArray[np.float32]:
    """As if a model had computed them."""
    return (np.random.default_rng(seed).normal(size=(num_rows, size)) * scale).astype(np.float32)


# ── against the reference ────────────────────────────────────────────────────────────────────────


def random_row(numbers: random.Random, sequence: int, size: int) -> Row:
    """A row that asks for some of everything."""
    known = [numbers.randrange(size) for _ in range(numbers.randrange(1, 40))]
    width = max(1, -(-size // 8) + numbers.choice((-1, 0, 0, 3)))
    sampling = Sampling(
        temperature=numbers.choice((0.0, 0.3, 1.0, 1.0, 2.5)),
        top_p=numbers.choice((None, None, 1.0, 0.0, 0.2, 0.9, 0.999)),
        top_k=numbers.choice((None, None, 0, -1, 1, 2, 50, 300, 5000)),
        min_p=numbers.choice((None, None, 0.0, 0.05, 0.5, 1.0)),
        repetition_penalty=numbers.choice((None, None, 1.0, 0.8, 1.3)),
        presence_penalty=numbers.choice((0.0, 0.0, 1.5, -1.0)),
        frequency_penalty=numbers.choice((0.0, 0.0, 0.7)),
        logit_bias=tuple((numbers.randrange(size), numbers.uniform(-5, 5)) for _ in range(numbers.choice((0, 0, 3)))),
    )
    return Row(
        sequence=sequence,
        position=len(known) - 1,
        token=known[-1],
        table=(),
        sampling=sampling,
        seed=numbers.randrange(1 << 40),
        tokens=known,
        num_prompt=numbers.randrange(len(known) + 1),
        mask=numbers.choice((None, None, numbers.randbytes(width))),
        banned_ids=tuple(numbers.randrange(size + 3) for _ in range(numbers.choice((0, 0, 2)))),
        num_logprobs=numbers.choice((None, 0, 3, 20)),
        target=numbers.choice((None, None, numbers.randrange(size))),
    )


def check_logprobs(logits: NDArray[np.float32], each: Row, token: int, found: Any) -> None:
    """They are the model's own, whatever was asked for besides."""
    if each.num_logprobs is None and each.target is None:
        assert found is None
        return
    expected = reference.log_softmax(logits.astype(np.float64))
    assert found.logprob == pytest.approx(expected[token if each.target is None else each.target], abs=1e-4)
    most = 0 if each.num_logprobs is None else min(each.num_logprobs, logits.size)
    assert len({token for token, _ in found.top}) == most
    assert [value for _, value in found.top] == pytest.approx(np.sort(expected)[::-1][:most], abs=1e-4)
    assert [expected[token] for token, _ in found.top] == pytest.approx([value for _, value in found.top], abs=1e-4)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 1 << 30),
    size=st.sampled_from(SIZES),
    scale=st.sampled_from((0.1, 2.0, 8.0)),
    ties=st.booleans(),
)
def test_every_row_gets_what_the_reference_gives_it(seed: int, size: int, scale: float, ties: bool) -> None:  # noqa: FBT001
    """In any company and alone the same token, drawn from what the reference keeps, with the reference's logprobs."""
    numbers = random.Random(seed)
    rows = [random_row(numbers, sequence, size) for sequence in range(numbers.randrange(1, 6))]
    logits = random_logits(len(rows), size, seed=seed, scale=scale)
    if ties:
        logits = np.round(logits)
    sampler = Sampler()
    sampled = sampler(mx.array(logits), rows)
    tokens, logprobs = tokens_of(sampled), sampled.logprobs_of(rows) or (None,) * len(rows)
    for place, each in enumerate(rows):
        scores = reference.adjusted(logits[place], each)
        assert bool(sampled.are_valid[place].item()) == bool(np.isfinite(scores.max()))
        check_logprobs(logits[place], each, tokens[place], logprobs[place])
        if np.isfinite(scores.max()):
            assert reference.is_drawn_rightly(tokens[place], scores, each)
        assert tokens_of(Sampler()(mx.array(logits[place : place + 1]), [each])) == [tokens[place]]


# ── greedy ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "asked",
    [
        {"temperature": 0.0},
        {"temperature": 1e-300},
        {"temperature": 1.0, "top_k": 1},
        {"temperature": 2.0, "top_p": 1e-9},
        {"temperature": 2.0, "top_p": 0.0},
        {"temperature": 2.0, "min_p": 1.0},
    ],
)
def test_what_leaves_only_the_likeliest_token_gives_it(asked: dict[str, Any]) -> None:
    """Whatever its chance says."""
    logits = random_logits(20, 500)
    rows = [row(seed=seed, **asked) for seed in range(20)]
    assert logits.argmax(-1).tolist() == draw(logits, rows)


def test_top_k_one_is_greedy_among_equals() -> None:
    """The first of several likeliest tokens, as without any chance."""
    assert draw([0.0, 5.0, 5.0, 5.0], [row(seed=seed, temperature=1.0, top_k=1) for seed in range(50)]) == [1] * 50


# ── chance ───────────────────────────────────────────────────────────────────────────────────────


def test_seed_and_position_decide_and_nothing_else() -> None:
    """Not the place in the batch, not who else is in it, and not when."""
    kinds: list[dict[str, Any]] = [{}, {"top_p": 0.9}, {"top_k": 40, "min_p": 0.01}, {"temperature": 0.0}]
    rows = [
        row(**{"seed": 100 + place, "position": place, "temperature": 1.3, **kinds[place % 4]}) for place in range(8)
    ]
    logits = mx.array(random_logits(8, 3000))
    sampler = Sampler()
    together = tokens_of(sampler(logits, rows))
    alone = [tokens_of(sampler(logits[place : place + 1], [rows[place]]))[0] for place in range(8)]
    assert alone == together
    assert alone == tokens_of(sampler(logits[::-1], rows[::-1]))[::-1]


def test_other_seeds_and_positions_give_other_tokens() -> None:
    """Neighbouring ones as well, and seeds of any size and sign."""
    logits = np.zeros(50_000, np.float32)
    by_seed = draw(logits, [row(seed=seed, temperature=1.0) for seed in range(100)])
    by_position = draw(logits, [row(position=position, temperature=1.0) for position in range(100)])
    extremes = draw(logits, [row(seed=seed, temperature=1.0) for seed in (-1, 2**63, 2**64 + 5)])
    assert min(len(set(by_seed)), len(set(by_position))) > 90
    assert len(set(extremes)) == 3


def test_chances_are_even() -> None:
    """From zero to just below one."""
    chances = np.array([chance(seed, position) for seed in range(50) for position in range(200)])
    histogram = np.histogram(chances, bins=10, range=(0, 1))[0]
    assert chances.min() >= 0
    assert chances.max() < 1
    assert abs(histogram - 1000).max() < 120


@pytest.mark.parametrize(
    ("asked", "kept"),
    [
        ({}, [1, 1, 1, 1, 1, 1]),
        ({"top_k": 3}, [1, 1, 1, 0, 0, 0]),
        ({"top_p": 0.7}, [1, 1, 0, 0, 0, 0]),
        ({"top_k": 3, "top_p": 0.8}, [1, 1, 0, 0, 0, 0]),
        ({"min_p": 0.3}, [1, 1, 1, 0, 0, 0]),
        ({"logit_bias": ((0, -100.0),)}, [0, 1, 1, 1, 1, 1]),
        ({"banned_ids": (1, 2)}, [1, 0, 0, 1, 1, 1]),
        ({"mask": b"\x2a"}, [0, 1, 0, 1, 0, 1]),
    ],
)
def test_tokens_come_as_often_as_they_are_likely(asked: dict[str, Any], kept: list[int]) -> None:
    """Among those that are left, at the temperature that was asked for (chi-square, far beyond its 99.9 % point)."""
    likely = np.array([0.44, 0.27, 0.15, 0.08, 0.04, 0.02])
    logits = (np.log(likely) * 2).astype(np.float32)
    counts = Counter(draw(logits, [row(seed=seed, temperature=2.0, **asked) for seed in range(4000)]))
    expected = likely * kept / (likely * kept).sum() * 4000
    assert {token for token in range(6) if kept[token]} == set(counts)
    assert sum((counts[token] - expected[token]) ** 2 / expected[token] for token in counts) < 30


def test_without_a_temperature_it_is_the_models_own_or_one() -> None:
    """As the model's files say, or do not say."""
    rows = [row(seed=seed, temperature=None) for seed in range(2000)]
    for sampler, temperature in ((Sampler(), 1.0), (Sampler(2.0), 2.0)):
        mean = np.mean(draw([0.0, 1.0], rows, sampler))
        assert abs(mean - 1 / (1 + np.exp(-1 / temperature))) < 0.03
    assert draw([0.0, 1.0], rows, Sampler(0.0)) == [1] * 2000


def test_a_token_without_probability_is_never_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither at the beginning nor at the end of the vocabulary, and not by a chance of zero either."""
    logits = [-np.inf, -np.inf, 0.0, 0.0, -np.inf]
    assert {2, 3} == set(draw(logits, [row(seed=seed, temperature=1.0) for seed in range(3000)]))
    monkeypatch.setattr("mlxm.device.sampler.chance", lambda _seed, _position: 0.0)
    assert draw(logits, [row(temperature=1.0)]) == [2]
    assert draw([9.0, 0.0, 0.0], [row(temperature=1.0, banned_ids=(0,))]) == [1]


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision_is_sampled_in_single_precision(dtype: mx.Dtype) -> None:
    """A vocabulary of equal tokens is drawn from to its end."""
    logits = mx.zeros((100, 40_000), dtype=dtype)
    tokens = tokens_of(Sampler()(logits, [row(seed=seed, temperature=1.0, top_p=0.99) for seed in range(100)]))
    assert len(set(tokens)) > 90
    assert max(tokens) > 38_000


# ── truncation ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("on_cpu", [True, False])
@pytest.mark.parametrize(
    "asked", [{"top_p": 0.2}, {"top_p": 0.5}, {"top_p": 0.99}, {"top_k": 700}, {"top_k": 20, "top_p": 0.9}]
)
def test_candidates_that_do_not_suffice_are_no_limit(
    asked: dict[str, Any], *, on_cpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flat rows are cut where the reference cuts them, beside steep ones, whether the host asks or all is sorted."""
    monkeypatch.setattr(truncation, "on_cpu", lambda: on_cpu)
    logits = np.concatenate([random_logits(2, 3001, scale=0.5), random_logits(2, 3001, scale=9.0)])
    for seed in range(20):
        rows = [row(seed=seed + 50 * place, temperature=1.0, **asked) for place in range(4)]
        for place, token in enumerate(draw(logits, rows)):
            assert reference.is_drawn_rightly(token, logits[place].astype(np.float64), rows[place])


@pytest.mark.parametrize(("size", "count"), [(5, 5), (300, 256), (1001, 20), (4096, 256), (32_003, 20), (32_768, 256)])
def test_the_largest_numbers_are_found(size: int, count: int) -> None:
    """In rows that divide into lines, in those that do not, and where everything is asked for."""
    logits = random_logits(3, size)
    logits[2, size // 2 :] = -np.inf
    expected = np.sort(logits)[:, ::-1][:, :count]
    assert np.array_equal(expected, np.array(truncation.largest_values(mx.array(logits), count)))
    ids = np.array(truncation.find_largest(mx.array(logits), count))
    assert np.array_equal(expected, np.sort(np.take_along_axis(logits, ids, 1))[:, ::-1])


# ── rows that fail ───────────────────────────────────────────────────────────────────────────────


def test_broken_logits_are_seen_row_by_row() -> None:
    """A single NaN, an infinite logit, or nothing finite at all; tokens that are ruled out are no fault."""
    fine = [0.0, 1.0, -2.0]
    broken = [[0.0, mx.nan, 1.0], [0.0, mx.inf, 1.0], [-mx.inf] * 3, [mx.nan] * 3]
    logits = mx.array([fine, [0.0, -mx.inf, 1.0], *broken])
    rows = [row(seed=seed, temperature=seed % 2, top_p=0.9, min_p=0.1, num_logprobs=2) for seed in range(6)]
    for numbers in (logits, logits.astype(mx.float16), logits.astype(mx.bfloat16)):
        sampled = Sampler()(numbers, rows)
        assert sampled.are_valid.tolist() == [True, True, False, False, False, False]
        assert max(tokens_of(sampled)) < 3


def test_only_the_row_that_may_choose_nothing_fails() -> None:
    """A mask without a bit, one for tokens beyond the vocabulary only, or a ban on the rest."""
    logits = random_logits(5, 20)
    masks = [None, bytes(3), b"\0\0\xf0\xff", b"\x04\0\0\0\0\0", b"\x04"]
    banned = [(), (), (), (2,), ()]
    rows = [row(temperature=place % 2, mask=masks[place], banned_ids=banned[place]) for place in range(5)]
    sampled = Sampler()(mx.array(logits), rows)
    assert sampled.are_valid.tolist() == [True, False, False, False, True]
    assert logits[0].argmax() == sampled.tokens[0].item()
    assert sampled.tokens[4].item() == 2


def test_a_penalty_that_breaks_the_numbers_fails_its_row_alone() -> None:
    """As a repetition penalty of nothing would."""
    rows = [row(tokens=[1, 2], num_prompt=1, position=1, sequence=each, repetition_penalty=each) for each in (0, 1)]
    assert Sampler()(mx.ones((2, 9)), rows).are_valid.tolist() == [False, True]


# ── adjustments ──────────────────────────────────────────────────────────────────────────────────


def test_a_bias_of_a_hundred_decides() -> None:
    """For a token and against one; ids beyond the vocabulary are nobody's."""
    logits = random_logits(1, 300)[0]
    best = int(logits.argmax())
    wanted = (best + 7) % 300
    rows = [row(logit_bias=((wanted, 100.0),)), row(logit_bias=((best, -100.0), (300, 9.0), (-1, 9.0)), sequence=1)]
    assert [wanted, int(np.argsort(logits)[-2])] == draw(logits, rows)


def test_penalties_follow_the_answer_as_it_grows() -> None:
    """Presence and frequency count the answer's tokens only, repetition those of the prompt too."""
    logits = np.array([5.0, 4.9, 4.5, 4.0, -1.0])
    sampler = Sampler()
    answers: dict[str, list[int]] = {}
    for number, name in enumerate(("presence_penalty", "frequency_penalty", "repetition_penalty")):
        tokens = [0]
        value = 2.0 if name == "repetition_penalty" else 0.3
        for position in range(5):
            facts = {"sequence": number, "position": position, "tokens": tokens, "num_prompt": 1}
            tokens += draw(logits, [row(**facts, **{name: value})], sampler)
        answers[name] = tokens[1:]
    assert answers["presence_penalty"] == [0, 1, 0, 0, 0]
    assert answers["frequency_penalty"] == [0, 1, 0, 1, 2]
    assert answers["repetition_penalty"] == [1, 2, 3, 0, 0]


def test_a_sequence_that_goes_back_is_counted_anew() -> None:
    """After a preemption or a failed step a position comes again; later tokens are not counted then."""
    tokens = [3, 0, 0, 0, 1]
    sampler = Sampler()
    facts: dict[str, Any] = {"tokens": tokens, "num_prompt": 1, "frequency_penalty": 1.0}
    logits = [2.5, 1.0, 0.0, 0.0]
    assert draw(logits, [row(position=3, **facts)], sampler) == [1]
    assert draw(logits, [row(position=1, **facts)], sampler) == [0]
    assert draw(logits, [row(position=1, **facts), row(position=2, **facts)], sampler) == [0, 1]


def test_what_is_known_of_a_sequence_is_forgotten() -> None:
    """Its number may then be another sequence's."""
    sampler = Sampler()
    first = row(tokens=[0, 1], num_prompt=1, position=1, presence_penalty=9.0)
    other = row(tokens=[0, 0], num_prompt=1, position=1, presence_penalty=9.0)
    logits = [1.0, 1.5, 0.0]
    assert draw(logits, [first], sampler) == [0]
    sampler.forget(0)
    assert draw(logits, [other], sampler) == [1]
    sampler.forget(0)
    sampler.forget(0)


def test_a_long_answer_is_counted_to_its_end() -> None:
    """More different tokens than there was room for at first."""
    logits = np.arange(500, 0, -1).astype(np.float32)
    facts: dict[str, Any] = {"tokens": list(range(400)), "num_prompt": 10, "position": 399}
    assert draw(logits, [row(repetition_penalty=600.0, **facts)]) == [400]
    assert draw(logits, [row(presence_penalty=600.0, **facts)]) == [0]
    assert draw(
        logits, [row(presence_penalty=600.0, banned_ids=tuple(range(10)), **facts, logit_bias=((10, 900.0),))]
    ) == [10]


def test_rows_that_ask_for_nothing_pass_unchanged() -> None:
    """To the bit, whatever their neighbours ask for."""
    logits = random_logits(2, 100)
    sampler = Sampler()
    neighbour = row(sequence=1, mask=b"\x01" * 13, repetition_penalty=1.7, tokens=[4], position=0)
    scores = sampler._adjustments.apply(mx.array(logits), [row(), neighbour])
    assert np.array_equal(logits[0], np.array(scores[0]))
    assert not np.array_equal(logits[1], np.array(scores[1]))


# ── logprobs ─────────────────────────────────────────────────────────────────────────────────────


def test_logprobs_come_for_those_who_want_them() -> None:
    """Nothing at all when nobody does; equally likely tokens in the order of their ids."""
    logits = mx.array([[1.0, 2.0, 2.0, 0.0]] * 4)
    assert Sampler()(logits, [row()] * 4).logprobs_of([row()] * 4) == ()
    rows = [row(), row(num_logprobs=0), row(num_logprobs=3), row(target=3)]
    nothing, bare, named, target = Sampler()(logits, rows).logprobs_of(rows)
    total = np.log(np.exp([1.0, 2.0, 2.0, 0.0]).sum())
    assert nothing is None
    assert bare is not None
    assert bare.top == ()
    assert named is not None
    assert [token for token, _ in named.top] == [1, 2, 0]
    assert named.logprob == named.top[0][1] == pytest.approx(2 - total, abs=1e-5)
    assert target is not None
    assert target.logprob == pytest.approx(-total, abs=1e-5)
