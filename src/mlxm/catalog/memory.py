"""How much memory a model will take, and whether that fits.

Weights are counted from the best source there is; what grows with the context follows from the cache's shape.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from mlxm.catalog.cache_shape import CacheShape
from mlxm.catalog.characteristics import KV_VALUE_BYTES, Characteristics
from mlxm.catalog.parameters import parameters_of_name
from mlxm.catalog.quantisation import quantisation_of_name

Basis = Literal["headers", "files", "parameters", "name"]

_STATE_VALUE_BYTES: Final = 4
_CHUNK_TOKENS: Final = 2048
"""How much of a prompt is computed at once."""
_LIVE_VALUES: Final = 32
"""Numbers per token and hidden value that are alive at once in a layer: its inputs, its heads, its wide middle."""
_LOGIT_BYTES: Final = 8
_SHARE_OF_WEIGHTS: Final = 20
"""Where the model's width is not known, a twentieth of its weights stands for what computing takes."""
_SCALE_BITS: Final = 32
_DTYPE_BITS: Final = {"float32": 32, "float16": 16, "bfloat16": 16, "float64": 64}
_USUAL_BITS: Final = 4
_NAME_BASE_BYTES: Final = 500_000_000
"""With half a byte per parameter it makes 2 GB of 3B and 4 GB of 7B."""
_LONGEST_CONTEXT: Final = 1 << 24


class MemoryEstimate(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes by use. `kv_bytes` None: the cache of this architecture is not known, and `total_bytes` leaves it out."""

    context: int | None
    weights_bytes: int
    kv_bytes: int | None
    overhead_bytes: int
    """What computing takes while a prompt is read."""
    total_bytes: int
    basis: Basis
    """What the weights were taken from; "name" is the rough last resort."""


def estimate(
    characteristics: Characteristics, size_bytes: int | None = None, context: int | None = None, *, kv_bits: int = 16
) -> MemoryEstimate | None:
    """What the model takes for one sequence of `context` tokens (None: its own limit); None when nothing is known."""
    weighed = _weights(characteristics, size_bytes)
    if weighed is None:
        return None
    tokens = characteristics.context_length if context is None else context
    weights, basis = weighed
    kv = None
    if characteristics.cache is not None and tokens is not None:
        kv = kv_bytes(characteristics.cache, tokens, kv_bits=kv_bits)
    overhead = _overhead(characteristics, weights, tokens)
    return MemoryEstimate(
        context=tokens,
        weights_bytes=weights,
        kv_bytes=kv,
        overhead_bytes=overhead,
        total_bytes=weights + overhead + (0 if kv is None else kv),
        basis=basis,
    )


def estimate_by_name(name: str) -> MemoryEstimate | None:
    """The last resort, from the 7B in a name: at four bits 3B takes 2 GB and 7B takes 4 GB; None without a size."""
    parameters = parameters_of_name(name)
    if parameters is None:
        return None
    named = quantisation_of_name(name)
    bits = _USUAL_BITS if named is None or named.bits is None else named.bits
    weights = _weights_by_name(parameters, bits)
    return MemoryEstimate(
        context=None, weights_bytes=weights, kv_bytes=None, overhead_bytes=0, total_bytes=weights, basis="name"
    )


def kv_bytes(cache: CacheShape, tokens: int, *, kv_bits: int = 16) -> int:
    """What one sequence of `tokens` keeps; packed keys and values carry a scale and a bias per 64."""
    kept = cache.full_layers * cache.values_per_token * tokens
    if cache.window is not None:
        kept += cache.window_layers * cache.window_values_per_token * min(tokens, cache.window)
    scales = 0 if kv_bits >= KV_VALUE_BYTES * 8 else _SCALE_BITS
    return kept * (64 * kv_bits + scales) // (64 * 8) + cache.state_values * _STATE_VALUE_BYTES


def fits(total_bytes: int, budget_bytes: int) -> bool:
    """Whether a model of that total may be loaded into that budget."""
    return total_bytes <= budget_bytes


def largest_context(
    characteristics: Characteristics, budget_bytes: int, size_bytes: int | None = None, *, kv_bits: int = 16
) -> int | None:
    """The longest context within the model's limit that fits, 0 when not even the weights do, None when unknown."""
    if characteristics.cache is None:
        return None
    limit = _LONGEST_CONTEXT if characteristics.context_length is None else characteristics.context_length
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        found = estimate(characteristics, size_bytes, middle, kv_bits=kv_bits)
        if found is None:
            return None
        low, high = (middle, high) if fits(found.total_bytes, budget_bytes) else (low, middle - 1)
    return low


def _weights(characteristics: Characteristics, size_bytes: int | None) -> tuple[int, Basis] | None:
    if characteristics.weights_bytes is not None:
        return characteristics.weights_bytes, "headers"
    for size in (size_bytes, characteristics.size_bytes):
        if size is not None and size > 0:
            return size, "files"
    return _weights_by_parameters(characteristics)


def _weights_by_parameters(characteristics: Characteristics) -> tuple[int, Basis] | None:
    parameters, packed = characteristics.parameters, characteristics.quantisation
    if parameters is None:
        return None
    bits = packed.bits if packed is not None else _DTYPE_BITS.get(characteristics.dtype or "")
    if characteristics.parameters_from == "name":
        return _weights_by_name(parameters, _USUAL_BITS if bits is None else bits), "name"
    if bits is None:
        return None
    group_size = None if packed is None else packed.group_size
    scales = 0 if group_size is None else parameters * _SCALE_BITS // group_size
    return (parameters * bits + scales) // 8, "parameters"


def _weights_by_name(parameters: int, bits: int) -> int:
    return _NAME_BASE_BYTES + parameters * bits // 8


def _overhead(characteristics: Characteristics, weights_bytes: int, tokens: int | None) -> int:
    if characteristics.hidden_size is None:
        return weights_bytes // _SHARE_OF_WEIGHTS
    chunk = _CHUNK_TOKENS if tokens is None else min(tokens, _CHUNK_TOKENS)
    logits = 0 if characteristics.vocab_size is None else characteristics.vocab_size * _LOGIT_BYTES
    return chunk * characteristics.hidden_size * _LIVE_VALUES + logits
