"""Architectures in which some or all layers keep a state of fixed size instead of keys and values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from mlxm.catalog.config import Config


class Division(msgspec.Struct, frozen=True):
    """How layers divide: those with keys and values, those with a state (both, in falcon_h1), and a state's size."""

    attention_layers: int
    state_layers: int
    state_values: int


def division_of(config: Config, model_type: str, layers: int) -> Division | None:
    """The division of a recurrent architecture; None when a size is missing."""
    rule = _RULES[model_type]
    try:
        return rule(config, layers)
    except _MissingSize:
        return None


class _MissingSize(Exception):
    """A size that the formula needs is not in config.json."""


def _size(config: Config, *keys: str) -> int:
    value = config.positive(*keys)
    if value is None:
        raise _MissingSize
    return value


def _gated_delta(config: Config, layers: int) -> Division:
    period = config.positive("full_attention_interval") or 4
    attention = layers // period
    num_values, value_dim = _size(config, "linear_num_value_heads"), _size(config, "linear_value_head_dim")
    key_dim = _size(config, "linear_key_head_dim")
    convolved = 2 * _size(config, "linear_num_key_heads") * key_dim + num_values * value_dim
    state = convolved * (_size(config, "linear_conv_kernel_dim") - 1) + num_values * value_dim * key_dim
    return Division(attention, layers - attention, state)


def _short_convolution(config: Config, layers: int) -> Division:
    listed = config.numbers("full_attn_idxs")
    attention = min(layers, len(listed) or config.words("layer_types").count("full_attention"))
    state = _size(config, "hidden_size") * (_size(config, "conv_L_cache") - 1)
    return Division(attention, layers - attention, state)


def _mamba(config: Config, layers: int) -> Division:
    inner = config.positive("intermediate_size", "d_inner") or 2 * _size(config, "hidden_size", "d_model")
    kernel = _size(config, "conv_kernel", "d_conv")
    return Division(0, layers, inner * (kernel - 1) + inner * _size(config, "state_size", "d_state"))


def _mamba2(config: Config, layers: int) -> Division:
    heads, head_dim = _size(config, "num_heads"), _size(config, "head_dim")
    state_size, kernel = _size(config, "ssm_state_size", "state_size"), _size(config, "conv_kernel")
    return Division(0, layers, _heads_state(heads, head_dim, state_size, _size(config, "n_groups"), kernel))


def _jamba(config: Config, layers: int) -> Division:
    listed = config.words("layers_block_type")
    if listed:
        attention = min(layers, listed.count("attention"))
    else:
        period, offset = _size(config, "attn_layer_period"), config.number("attn_layer_offset") or 0
        attention = sum(1 for layer in range(layers) if layer % period == offset)
    inner = _size(config, "mamba_expand") * _size(config, "hidden_size")
    state = inner * (_size(config, "mamba_d_conv") - 1) + inner * _size(config, "mamba_d_state")
    return Division(attention, layers - attention, state)


def _nemotron(config: Config, layers: int) -> Division:
    pattern = config.value("hybrid_override_pattern")
    if not isinstance(pattern, (str, list)) or not pattern:
        raise _MissingSize
    attention, states = (sum(1 for kind in pattern if kind == mark) for mark in "*M")
    heads, head_dim = _size(config, "mamba_num_heads"), _size(config, "mamba_head_dim")
    state_size, kernel = _size(config, "ssm_state_size"), _size(config, "conv_kernel")
    state = _heads_state(heads, head_dim, state_size, _size(config, "n_groups"), kernel)
    return Division(min(attention, layers), min(states, layers), state)


def _falcon(config: Config, layers: int) -> Division:
    return Division(layers, layers, _mamba_heads(config))


def _granite(config: Config, layers: int) -> Division:
    listed = config.words("layer_types")
    attention = min(layers, listed.count("attention"))
    if attention == layers:
        return Division(layers, 0, 0)
    return Division(attention, layers - attention, _mamba_heads(config))


def _recurrent_gemma(config: Config, layers: int) -> Division:
    kinds = config.words("block_types", "_block_types")
    if not kinds:
        raise _MissingSize
    attention = sum(1 for layer in range(layers) if kinds[layer % len(kinds)] == "attention")
    width = config.positive("lru_width") or _size(config, "hidden_size")
    return Division(attention, layers - attention, width * _size(config, "conv1d_width"))


def _mamba_heads(config: Config) -> int:
    heads, head_dim = _size(config, "mamba_n_heads"), _size(config, "mamba_d_head")
    state_size, kernel = _size(config, "mamba_d_state"), _size(config, "mamba_d_conv")
    return _heads_state(heads, head_dim, state_size, _size(config, "mamba_n_groups"), kernel)


def _heads_state(heads: int, head_dim: int, state_size: int, groups: int, kernel: int) -> int:
    """A state per head, and the last inputs of the convolution in front of them."""
    convolved = heads * head_dim + 2 * groups * state_size
    return heads * head_dim * state_size + convolved * (kernel - 1)


_Rule = Callable[[Config, int], Division]
_RULES: Final[dict[str, _Rule]] = {
    **dict.fromkeys(("qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"), _gated_delta),
    **dict.fromkeys(("lfm2", "lfm2_moe", "lfm2_vl", "lfm2-vl"), _short_convolution),
    **dict.fromkeys(("mamba", "falcon_mamba"), _mamba),
    "mamba2": _mamba2,
    "jamba": _jamba,
    "nemotron_h": _nemotron,
    "falcon_h1": _falcon,
    "granitemoehybrid": _granite,
    "recurrent_gemma": _recurrent_gemma,
}
RECURRENT: Final = frozenset(_RULES)
