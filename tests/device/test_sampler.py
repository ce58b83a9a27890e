from collections import Counter

import mlx.core as mx
import numpy as np

from mlxm.device.sampler import Sampler, are_finite, chance
from mlxm.engine.plan import Row
from mlxm.types import Sampling


def row(seed: int = 0, position: int = 0, temperature: float | None = 0.0) -> Row:
    """A row of which only the sampling matters."""
    return Row(
        sequence=0, position=position, token=0, table=(), seed=seed, sampling=Sampling(temperature=temperature)
    )


def test_at_temperature_zero_the_likeliest_is_taken() -> None:
    """Zero is zero, and so is a temperature too small to divide by."""
    mx.random.seed(0)
    logits = mx.random.normal((3, 500))
    rows = [row(temperature=0.0), row(temperature=1e-300), row(seed=9, temperature=0.0)]
    assert mx.argmax(logits, axis=-1).tolist() == Sampler(1.0)(logits, rows).tolist()


def test_seed_and_position_decide_and_nothing_else() -> None:
    """Not the place in the batch, not who else is in it, and not when."""
    mx.random.seed(1)
    logits = mx.random.normal((8, 300))
    rows = [row(seed=100 + place, position=place, temperature=0.0 if place % 3 == 0 else 1.3) for place in range(8)]
    sampler = Sampler()
    together = sampler(logits, rows).tolist()
    alone = [sampler(logits[place : place + 1], [rows[place]]).item() for place in range(8)]
    reversed_tokens = sampler(logits[::-1], rows[::-1]).tolist()
    assert alone == together
    assert alone == reversed_tokens[::-1]


def test_other_seeds_and_positions_give_other_tokens() -> None:
    """Neighbouring ones as well, and seeds of any size and sign."""
    logits = mx.zeros((200, 50_000))
    by_seed = Sampler()(logits, [row(seed=seed, temperature=1.0) for seed in range(200)]).tolist()
    by_position = Sampler()(logits, [row(position=position, temperature=1.0) for position in range(200)]).tolist()
    extremes = Sampler()(logits[:3], [row(seed=seed, temperature=1.0) for seed in (-1, 2**63, 2**64 + 5)]).tolist()
    assert min(len(set(by_seed)), len(set(by_position))) > 190
    assert len(set(extremes)) == 3


def test_tokens_come_as_often_as_they_are_likely() -> None:
    """At the temperature asked for, or at the model's own where none is asked for."""
    probabilities = np.array([0.5, 0.25, 0.125, 0.125])
    logits = mx.broadcast_to(mx.array(np.log(probabilities, dtype=np.float32)) * 2, (4000, 4))
    rows = [row(seed=seed, temperature=2.0 if seed % 2 else None) for seed in range(4000)]
    counts = Counter(Sampler(2.0)(logits, rows).tolist())
    found = np.array([counts[token] / 4000 for token in range(4)])
    assert np.abs(probabilities - found).max() < 0.03


def test_without_any_temperature_it_is_one() -> None:
    """As for a model whose files do not say."""
    logits = mx.broadcast_to(mx.array([0.0, 1.0]), (2000, 2))
    tokens = Sampler()(logits, [row(seed=seed, temperature=None) for seed in range(2000)]).tolist()
    assert abs(np.mean(tokens) - 1 / (1 + np.exp(-1))) < 0.03


def test_chances_are_even() -> None:
    """From zero to just below one."""
    chances = np.array([chance(seed, position) for seed in range(50) for position in range(200)])
    histogram = np.histogram(chances, bins=10, range=(0, 1))[0]
    assert chances.min() >= 0
    assert chances.max() < 1
    assert abs(histogram - 1000).max() < 120


def test_a_token_without_probability_is_never_drawn() -> None:
    """Neither at the beginning nor at the end of the vocabulary."""
    logits = mx.broadcast_to(mx.array([-mx.inf, -mx.inf, 0.0, 0.0, -mx.inf]), (3000, 5))
    tokens = Sampler()(logits, [row(seed=seed, temperature=1.0) for seed in range(3000)]).tolist()
    assert set(tokens) == {2, 3}


def test_half_precision_is_sampled_in_single_precision() -> None:
    """A vocabulary of equal tokens is drawn from to its end."""
    logits = mx.zeros((300, 40_000), dtype=mx.bfloat16)
    tokens = Sampler()(logits, [row(seed=seed, temperature=1.0) for seed in range(300)]).tolist()
    assert len(set(tokens)) > 280
    assert max(tokens) > 38_000


def test_broken_logits_are_seen_row_by_row() -> None:
    """A single NaN, an infinite logit, or nothing finite at all; tokens that are ruled out are no fault."""
    fine = [0.0, 1.0, -2.0]
    broken = [[0.0, mx.nan, 1.0], [0.0, mx.inf, 1.0], [-mx.inf] * 3, [mx.nan] * 3]
    logits = mx.array([fine, [0.0, -mx.inf, 1.0], *broken])
    assert are_finite(logits).tolist() == [True, True, False, False, False, False]
    assert are_finite(logits.astype(mx.float16)).tolist() == [True, True, False, False, False, False]
