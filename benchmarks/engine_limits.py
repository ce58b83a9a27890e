"""What this machine could do at best: its memory bandwidth and its matrix products, as measured, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

_FLOAT_BYTES = 4
_BANDWIDTH_BYTES = 256 * 1024 * 1024
_WIDTH = 1024
_PREFILL_ROWS = 512
_SAMPLES = 5


@dataclass(frozen=True, kw_only=True)
class Size:
    """What a model's arithmetic depends on."""

    num_weights: int
    """Those that every token is multiplied with; the head only where logits are wanted."""
    num_head_weights: int
    num_layers: int
    query_width: int
    kv_width: int

    @classmethod
    def of(cls, model: Any) -> Size:
        """The size of a dense model whose embedding is its head."""
        arguments = model.args
        leaves: Any = tree_flatten(model.parameters())
        head = arguments.vocab_size * arguments.hidden_size
        return cls(
            num_weights=sum(array.size for _, array in leaves) - head,
            num_head_weights=head,
            num_layers=len(model.layers),
            query_width=arguments.num_attention_heads * arguments.head_dim,
            kv_width=arguments.num_key_value_heads * arguments.head_dim,
        )

    @property
    def token_bytes(self) -> int:
        """Keys and values of a token."""
        return 2 * self.num_layers * self.kv_width * _FLOAT_BYTES

    def attention_flops(self, num_seen: int) -> int:
        """What it takes for a token to look at those before it."""
        return 4 * self.num_layers * self.query_width * num_seen

    def decode_s(self, contexts: Sequence[int], num_read: int | None = None) -> float:
        """A step with a row for each context; `num_read` are the tokens to be read where rows share some."""
        weights = self.num_weights + self.num_head_weights
        tokens = sum(contexts) if num_read is None else num_read
        moved_bytes = weights * _FLOAT_BYTES + tokens * self.token_bytes
        flops = 2 * weights * len(contexts) + sum(map(self.attention_flops, contexts))
        return max(moved_bytes / bytes_per_s(), flops / flops_per_s(len(contexts)))

    def prefill_s(self, num_tokens: int, start: int = 0) -> float:
        """A prompt, from a position on."""
        flops = 2 * self.num_weights * num_tokens
        flops += sum(map(self.attention_flops, range(start, start + num_tokens)))
        return flops / flops_per_s(_PREFILL_ROWS)


@cache
def bytes_per_s() -> float:
    """Memory read by a sum."""
    numbers = np.ones(_BANDWIDTH_BYTES // _FLOAT_BYTES, np.float32)
    return numbers.nbytes / _fastest_s(numbers.sum)


@cache
def flops_per_s(num_rows: int) -> float:
    """The product of a matrix that stays in the cache and as many rows."""
    rows, matrix = mx.random.normal((num_rows, _WIDTH)), mx.random.normal((_WIDTH, _WIDTH))
    mx.eval(rows, matrix)
    return 2 * rows.size * _WIDTH / _fastest_s(lambda: mx.eval(rows @ matrix))


def _fastest_s(work: Callable[[], object]) -> float:
    work()
    return min(_timed_s(work) for _ in range(_SAMPLES))


def _timed_s(work: Callable[[], object]) -> float:
    start = time.process_time()
    for _ in range(_SAMPLES):
        work()
    return (time.process_time() - start) / _SAMPLES
