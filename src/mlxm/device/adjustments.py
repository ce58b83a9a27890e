"""What requests change in their logits before a token is chosen: penalties, biases, and tokens that they may not have.

A row that asks for none of it goes through unchanged, to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxm.engine.plan import Row
from mlxm.types import Sampling

FORBIDDEN = -1e30
"""Added to the logits of tokens that may not be chosen: far below any other, and finite, so that sums stay finite."""
_FIRST_SLOTS = 64
_NEUTRAL = 1.0
_ALL_ALLOWED = 0xFF


class Adjustments:
    """Changes logits as their rows ask for, and remembers which tokens each sequence has had."""

    def __init__(self) -> None:
        self._touched: dict[int, _Touched] = {}

    def apply(self, logits: mx.array, rows: Sequence[Row]) -> mx.array:
        """The logits [rows, vocabulary] as they are, or in single precision with all that the rows ask for."""
        touches = any(_touches_tokens(row.sampling) for row in rows)
        bars = any(row.mask is not None or row.banned_ids for row in rows)
        if not touches and not bars:
            return logits
        scores = logits.astype(mx.float32)
        if touches:
            scores = self._touch(scores, rows)
        return _bar(scores, rows) if bars else scores

    def forget(self, sequence: int) -> None:
        """Drop what is remembered of a sequence."""
        self._touched.pop(sequence, None)

    def _touch(self, scores: mx.array, rows: Sequence[Row]) -> mx.array:
        """Penalties, then biases: of each row only the tokens that they concern."""
        vocab_size = scores.shape[-1]
        found = [self._of(row, vocab_size) if _touches_tokens(row.sampling) else _NOTHING for row in rows]
        width = max(ids.size for ids, _, _ in found)
        all_ids = np.empty((len(rows), width), np.int32)
        all_factors = np.empty((len(rows), width), np.float32)
        all_biases = np.empty((len(rows), width), np.float32)
        for place, each in enumerate(found):
            for whole, part in zip((all_ids, all_factors, all_biases), each, strict=True):
                whole[place, : part.size] = part
                whole[place, part.size :] = part[0]  # the same token again, to the same effect
        ids, factors = mx.array(all_ids), mx.array(all_factors)
        values = mx.take_along_axis(scores, ids, axis=1)
        values = mx.where(values > 0, values / factors, values * factors) + mx.array(all_biases)
        return mx.put_along_axis(scores, ids, values, axis=1)

    def _of(self, row: Row, vocab_size: int) -> _Slots:
        """The tokens that concern a row, each with what its logit is divided or multiplied by, and what is added."""
        touched = self._touched.get(row.sequence)
        if touched is None or touched.num_read > row.position + 1:
            touched = self._touched[row.sequence] = _Touched(row.sampling, row.num_prompt, vocab_size)
        touched.read(row.tokens, row.position + 1)
        return touched.slots()


_Slots = tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]]
_NOTHING: _Slots = (np.zeros(1, np.int32), np.ones(1, np.float32), np.zeros(1, np.float32))
"""The first token of the vocabulary, left as it is."""


class _Touched:
    """The tokens of a sequence whose logits change: a slot for each, in arrays that grow with the sequence."""

    def __init__(self, sampling: Sampling, num_prompt: int, vocab_size: int) -> None:
        self._repetition = _repetition(sampling)
        self._presence = sampling.presence_penalty
        self._frequency = sampling.frequency_penalty
        self._num_prompt = num_prompt
        self._vocab_size = vocab_size
        self._slot_of: dict[int, int] = {}
        self._ids = np.zeros(_FIRST_SLOTS, np.int32)
        self._factors = np.full(_FIRST_SLOTS, _NEUTRAL, np.float32)
        self._counts = np.zeros(_FIRST_SLOTS, np.float32)
        self._biases = np.zeros(_FIRST_SLOTS, np.float32)
        self.num_read = 0 if self._repetition != _NEUTRAL else num_prompt
        """Of the sequence's tokens; those of the prompt matter to repetition alone."""
        for token, bias in sampling.logit_bias:
            if 0 <= token < vocab_size:
                self._biases[self._slot(token)] += bias

    def read(self, tokens: Sequence[int], end: int) -> None:
        """Count the tokens from where reading stopped up to `end`."""
        if self._repetition == _NEUTRAL and not self._presence and not self._frequency:
            return
        for place, token in enumerate(tokens[self.num_read : end], start=self.num_read):
            if 0 <= token < self._vocab_size:
                slot = self._slot(token)
                self._factors[slot] = self._repetition
                self._counts[slot] += place >= self._num_prompt
            self.num_read += 1

    def slots(self) -> _Slots:
        """All tokens, each with what its logit is divided or multiplied by, and what is added."""
        size = len(self._slot_of)
        if not size:
            return _NOTHING
        counts = self._counts[:size]
        added = self._biases[:size] - self._frequency * counts - self._presence * (counts > 0)
        return self._ids[:size], self._factors[:size], added

    def _slot(self, token: int) -> int:
        slot = self._slot_of.setdefault(token, len(self._slot_of))
        if slot == self._ids.size:
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._factors = np.concatenate([self._factors, np.full_like(self._factors, _NEUTRAL)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
            self._biases = np.concatenate([self._biases, np.zeros_like(self._biases)])
        self._ids[slot] = token
        return slot


def _bar(scores: mx.array, rows: Sequence[Row]) -> mx.array:
    """Put the tokens that rows may not choose far below the others."""
    vocab_size = scores.shape[-1]
    packed = np.zeros((len(rows), -(-vocab_size // 8)), np.uint8)
    for bits, row in zip(packed, rows, strict=True):
        if row.mask is None:
            bits[:] = _ALL_ALLOWED
        else:
            allowed = np.frombuffer(row.mask, np.uint8)[: bits.size]
            bits[: allowed.size] = allowed
        for token in row.banned_ids:
            if 0 <= token < vocab_size:
                bits[token >> 3] &= ~(1 << (token & 7)) & 0xFF
    flags = mx.bitwise_and(mx.right_shift(mx.array(packed)[:, :, None], mx.arange(8, dtype=mx.uint8)), 1)
    allowed_ones = flags.reshape(len(rows), -1)[:, :vocab_size].astype(mx.float32)
    return scores + (1 - allowed_ones) * FORBIDDEN


def _touches_tokens(sampling: Sampling) -> bool:
    return bool(
        sampling.presence_penalty
        or sampling.frequency_penalty
        or sampling.logit_bias
        or _repetition(sampling) != _NEUTRAL
    )


def _repetition(sampling: Sampling) -> float:
    return _NEUTRAL if sampling.repetition_penalty is None else sampling.repetition_penalty
