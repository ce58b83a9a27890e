"""Sampling of a single row in plain NumPy and double precision, to compare with."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from mlxm.device.sampler import chance
from mlxm.engine.plan import Row

Numbers = NDArray[np.float64]
Flags = NDArray[np.bool_]
_SLACK = 1e-4
"""What single precision may make of a cumulative sum."""


def adjusted(logits: Numbers, row: Row) -> Numbers:
    """Penalties, then biases; what is forbidden is minus infinity."""
    scores = logits.astype(np.float64)
    known = list(row.tokens[: row.position + 1])
    answer = known[row.num_prompt :]
    sampling = row.sampling
    for token in set(known):
        factor = 1.0 if sampling.repetition_penalty is None else sampling.repetition_penalty
        scores[token] = scores[token] / factor if scores[token] > 0 else scores[token] * factor
        scores[token] -= sampling.frequency_penalty * answer.count(token)
        scores[token] -= sampling.presence_penalty * (token in answer)
    for token, bias in sampling.logit_bias:
        scores[token] += bias
    scores[~allowed(row, scores.size)] = -np.inf
    return scores


def allowed(row: Row, vocab_size: int) -> Flags:
    """The tokens that the mask and the ban leave."""
    if row.mask is None:
        flags = np.ones(vocab_size, bool)
    else:
        bits = [bool(byte >> bit & 1) for byte in row.mask for bit in range(8)]
        flags = np.array((bits + [False] * vocab_size)[:vocab_size])
    flags[[token for token in row.banned_ids if token < vocab_size]] = False
    return flags


def log_softmax(logits: Numbers) -> Numbers:
    """The model's own distribution."""
    shifted = logits.astype(np.float64) - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def is_drawn_rightly(token: int, scores: Numbers, row: Row) -> bool:
    """Whether the row's chance falls in the token's share, as nearly as single precision can tell."""
    temperature = row.sampling.temperature
    if temperature is None or temperature < 1e-5 or row.sampling.top_k == 1:
        return bool(token == scores.argmax())
    scaled = scores / temperature
    return any(_falls_in(token, scaled, kept, chance(row.seed, row.position)) for kept in _kept(scaled, row))


def _kept(scaled: Numbers, row: Row) -> Iterator[Flags]:
    """What truncation leaves; where a limit is nearly met, both with and without what lies there."""
    sampling = row.sampling
    order = np.sort(scaled)[::-1]
    lowest = -np.inf
    if sampling.top_k is not None and sampling.top_k > 0:
        order = order[: sampling.top_k]
        lowest = order[-1]
    for slack in (-_SLACK, 0.0, _SLACK):
        limits = [lowest]
        if sampling.top_p is not None and sampling.top_p < 1:
            sums = np.exp(order - order[0]).cumsum()
            limits.append(order[min(int((sums < (sampling.top_p + slack) * sums[-1]).sum()), order.size - 1)])
        if sampling.min_p:
            limits.append(order[0] + np.log(sampling.min_p) + min(slack, 0.0))
        yield (scaled >= max(limits)) & (scaled > -np.inf)


def _falls_in(token: int, scaled: Numbers, kept: Flags, point: float) -> bool:
    if not kept[token]:
        return False
    sums = np.where(kept, np.exp(scaled - scaled.max()), 0.0).cumsum()
    before = sums[token - 1] if token else 0.0
    return bool(before / sums[-1] - _SLACK <= point <= sums[token] / sums[-1] + _SLACK)
