"""Sizes that tiny configurations share: as small as the models' code allows, and even enough for groups of 32."""

from __future__ import annotations

from typing import Final

from mlxm.tiny.tokenizer import VOCAB_SIZE

Config = dict[str, object]

CONTEXT: Final = 2048
WINDOW: Final = 16
"""The sliding window of every architecture that has one: short, so that tests with short prompts leave it."""

_BASE: Final[Config] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}

EXPERT_SIZES: Final[Config] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
GRANITE_SCALES: Final[Config] = {
    "embedding_multiplier": 6.0,
    "attention_multiplier": 0.25,
    "residual_multiplier": 0.8,
    "logits_scaling": 0.5,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
}
LATENT_SIZES: Final[Config] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
}


def tiny_config(model_type: str, *parts: Config, **differences: object) -> Config:
    """The shared sizes, changed by each of the parts in turn and then by the differences."""
    merged: Config = {"model_type": model_type, **_BASE}
    for part in (*parts, differences):
        merged |= part
    return merged
