"""What a running model keeps for one sequence: keys and values, latents, windows, recurrent states.

It is what mlx-lm really keeps, which may differ from the published architecture: it windows gemma3 and not gemma2.
An architecture whose cache is not known here has none rather than a wrong one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from mlxm.catalog.config import Config, Shape
from mlxm.catalog.families import UNKNOWN, family_of_type
from mlxm.catalog.recurrent_state import RECURRENT, division_of


class CacheShape(msgspec.Struct, frozen=True, kw_only=True):
    """What one sequence keeps: layers that keep every token, layers that keep a window, and a state of fixed size."""

    full_layers: int
    window_layers: int = 0
    window: int | None = None
    values_per_token: int
    """Numbers per token and full layer: keys and values of all KV heads, or the latent of MLA."""
    window_values_per_token: int = 0
    state_values: int = 0
    """Numbers that recurrent layers keep for a sequence of any length."""


NOTHING: Final = CacheShape(full_layers=0, values_per_token=0)
"""For models that read a text at once and write none."""

_LATENT: Final = frozenset(
    {
        *("deepseek_v3", "kimi_k2", "kimi_k25", "kimi_vl", "glm4_moe_lite", "longcat_flash", "deepseek_v32"),
        *("glm_moe_dsa", "joyai_llm_flash", "youtu_llm", "mistral4"),
    }
)
_EXPANDED_LATENT: Final = frozenset({"deepseek_v2", "minicpm3"})
_LISTED_WINDOWS: Final = frozenset(
    {
        *("llama", "mistral", "ministral3", "mistral3", "olmo3", "gpt_oss", "gemma3n", "gemma3n_text", "gemma4_text"),
        *("gemma4", "exaone_moe", "exaone4", "mellum", "laguna"),
    }
)
"""mlx-lm windows the layers that layer_types calls sliding_attention."""
_PATTERNED_WINDOWS: Final = {"gemma3_text": 6, "gemma3": 6, "cohere2": 4}
"""Every n-th layer keeps every token, where the configuration does not say another n."""
_CHUNKED_PERIOD: Final = 4
_UNKNOWN: Final = frozenset(
    {
        *("baichuan_m1", "bailing_hybrid", "bailing_moe_linear", "bailing_moe_v3", "gear", "kimi_k3", "kimi_linear"),
        *("olmo_hybrid", "plamo2", "rwkv7", "deepseek_v4", "deepseek_v41", "longcat_flash_ngram", "afm7", "plamo3"),
        *("step3p5", "muse_spark", "muse_glimmer", "iquestloopcoder", "spark2_5", "afmoe"),
        *("mimo_v2_flash", "dbrx", "nemotron-nas", "nemotron_nas"),
    }
)
_HINTS: Final = ("kv_lora_rank", "mamba_d_state", "ssm_state_size", "state_size", "linear_attn_config", "ssm_cfg")
"""Keys that speak of a cache of another kind, in architectures that no table here knows."""


def cache_shape_of(config: Config, shape: Shape) -> CacheShape | None:
    """The cache of a model that writes text, None when its kind is not known."""
    model_type = config.text_type
    if shape.layers is None or model_type is None or model_type in _UNKNOWN:
        return None
    if model_type in _LATENT:
        return _latent(config, model_type, shape.layers)
    if model_type in _EXPANDED_LATENT:
        return _expanded_latent(config, shape, shape.layers)
    if model_type in RECURRENT:
        return _recurrent(config, shape, model_type, shape.layers)
    if family_of_type(model_type) == UNKNOWN and any(config.value(hint) is not None for hint in _HINTS):
        return None
    return _attention(config, shape, model_type)


def _attention(config: Config, shape: Shape, model_type: str) -> CacheShape | None:
    """Keys and values of every KV head; some layers may keep a window only."""
    values = _keys_and_values(shape)
    if values is None or shape.layers is None:
        return None
    own = shape.layers - min(shape.layers, config.number("num_kv_shared_layers") or 0)
    if model_type == "mllama_text_model":
        own -= min(own, len(config.numbers("cross_attention_layers")))  # these look at the image alone
    windowed = sum(_windowed(config, model_type, shape.layers)[:own])
    window = config.positive("attention_chunk_size") if _is_llama4(model_type) else config.positive("sliding_window")
    if window is None:
        windowed = 0
    return CacheShape(
        full_layers=own - windowed,
        window_layers=windowed,
        window=window if windowed else None,
        values_per_token=_global_values(config, shape, model_type, values),
        window_values_per_token=values if windowed else 0,
    )


def _windowed(config: Config, model_type: str, layers: int) -> Sequence[bool]:
    """Which layers keep a window only."""
    if _is_llama4(model_type):
        return [(layer + 1) % _CHUNKED_PERIOD != 0 for layer in range(layers)]
    if model_type in _PATTERNED_WINDOWS:
        period = config.positive("sliding_window_pattern", "_sliding_window_pattern") or _PATTERNED_WINDOWS[model_type]
        return [layer % period != period - 1 for layer in range(layers)]
    pattern = config.value("sliding_window_pattern")
    if model_type == "exaone4" and isinstance(pattern, str) and pattern:
        return [pattern[layer % len(pattern)] == "L" for layer in range(layers)]
    listed = config.words("layer_types")
    if model_type in _LISTED_WINDOWS and listed:
        return [kind == "sliding_attention" for kind in listed]
    if model_type in ("gpt_oss", "olmo3"):
        period = 2 if model_type == "gpt_oss" else 4
        return [(layer + 1) % period != 0 for layer in range(layers)]
    return []


def _global_values(config: Config, shape: Shape, model_type: str, values: int) -> int:
    """gemma4 gives the layers that see everything heads of another size."""
    head_dim = config.positive("global_head_dim")
    if not model_type.startswith("gemma4") or head_dim is None or shape.kv_heads is None:
        return values
    heads = shape.kv_heads
    if config.value("attention_k_eq_v") is True:
        heads = config.positive("num_global_key_value_heads") or heads
    return 2 * heads * head_dim


def _latent(config: Config, model_type: str, layers: int) -> CacheShape | None:
    rank, rope = config.positive("kv_lora_rank"), config.positive("qk_rope_head_dim")
    if rank is None or rope is None:
        return None
    values = rank + rope
    if model_type in ("deepseek_v32", "glm_moe_dsa"):
        values += 2 * (config.positive("index_head_dim") or 0)  # the index is kept in a cache for keys and values
    if model_type == "longcat_flash":
        layers = 2 * (config.positive("num_layers") or layers)  # each of its layers attends twice
    return CacheShape(full_layers=layers, values_per_token=values)


def _expanded_latent(config: Config, shape: Shape, layers: int) -> CacheShape | None:
    """The latent is unfolded before it is kept, for every head."""
    nope, rope = config.positive("qk_nope_head_dim"), config.positive("qk_rope_head_dim")
    if shape.heads is None or nope is None or rope is None:
        return None
    value = config.positive("v_head_dim") or (shape.hidden_size or 0) // shape.heads
    return CacheShape(full_layers=layers, values_per_token=shape.heads * (nope + rope + value))


def _recurrent(config: Config, shape: Shape, model_type: str, layers: int) -> CacheShape | None:
    division = division_of(config, model_type, layers)
    values = _keys_and_values(shape)
    if division is None or (division.attention_layers and values is None):
        return None
    is_windowed = model_type == "recurrent_gemma"
    return CacheShape(
        full_layers=0 if is_windowed else division.attention_layers,
        window_layers=division.attention_layers if is_windowed else 0,
        window=config.positive("attention_window_size") if is_windowed else None,
        values_per_token=0 if is_windowed or values is None else values,
        window_values_per_token=values if is_windowed and values is not None else 0,
        state_values=division.state_layers * division.state_values,
    )


def _keys_and_values(shape: Shape) -> int | None:
    return None if shape.kv_heads is None or shape.head_dim is None else 2 * shape.kv_heads * shape.head_dim


def _is_llama4(model_type: str) -> bool:
    return model_type in ("llama4", "llama4_text")
