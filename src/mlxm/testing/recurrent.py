"""Tiny configurations of architectures that keep a state of fixed size in some or all layers."""

from __future__ import annotations

from typing import Final

from mlxm.testing.shapes import CONTEXT, EXPERT_SIZES, GRANITE_SCALES, LATENT_SIZES, WINDOW, Config, tiny_config
from mlxm.tiny.tokenizer import VOCAB_SIZE

_GATED_DELTA: Final[Config] = {
    "num_hidden_layers": 4,
    "full_attention_interval": 4,
    "partial_rotary_factor": 0.5,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 4,
}
_SHORT_CONV: Final[Config] = {
    "num_hidden_layers": 4,
    "layer_types": ["conv", "full_attention", "conv", "full_attention"],
    "norm_eps": 1e-5,
    "conv_bias": False,
    "conv_L_cache": 3,
}


RECURRENT: Final[dict[str, Config]] = {
    "qwen3_next": tiny_config(
        "qwen3_next",
        _GATED_DELTA,
        EXPERT_SIZES,
        decoder_sparse_step=1,
        mlp_only_layers=[0],
        norm_topk_prob=True,
        shared_expert_intermediate_size=64,
    ),
    "qwen3_5": {
        "model_type": "qwen3_5",
        "vocab_size": VOCAB_SIZE,
        "text_config": tiny_config(
            "qwen3_5_text",
            _GATED_DELTA,
            rope_parameters={"type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        ),
    },
    "mamba2": tiny_config(
        "mamba2",
        num_heads=8,
        state_size=16,
        layer_norm_epsilon=1e-5,
        conv_kernel=4,
        n_groups=2,
        use_bias=False,
        use_conv_bias=True,
        time_step_limit=[0.001, 10.0],
        time_step_rank="auto",
    ),
    "mamba": tiny_config("mamba", state_size=16, conv_kernel=4, use_bias=False, use_conv_bias=True, time_step_rank=4),
    "jamba": tiny_config(
        "jamba",
        num_hidden_layers=4,
        attn_layer_offset=1,
        attn_layer_period=2,
        expert_layer_offset=1,
        expert_layer_period=2,
        num_experts=4,
        num_experts_per_tok=2,
        mamba_d_conv=4,
        mamba_d_state=16,
        mamba_expand=2,
    ),
    "nemotron_h": tiny_config(
        "nemotron_h",
        num_hidden_layers=4,
        hybrid_override_pattern=["M", "*", "M", "-"],
        attention_bias=False,
        mlp_bias=False,
        use_bias=False,
        use_conv_bias=True,
        mamba_num_heads=8,
        mamba_head_dim=16,
        mamba_proj_bias=False,
        ssm_state_size=16,
        conv_kernel=4,
        n_groups=2,
        layer_norm_epsilon=1e-5,
    ),
    "falcon_h1": tiny_config(
        "falcon_h1",
        mamba_d_conv=4,
        mamba_d_head=16,
        mamba_d_ssm=128,
        mamba_d_state=16,
        mamba_n_heads=8,
        mamba_n_groups=2,
    ),
    "granitemoehybrid": tiny_config(
        "granitemoehybrid",
        GRANITE_SCALES,
        num_hidden_layers=4,
        layer_types=["mamba", "attention", "mamba", "attention"],
        num_local_experts=4,
        num_experts_per_tok=2,
        shared_intermediate_size=64,
        mamba_n_heads=8,
        mamba_d_head=16,
        mamba_proj_bias=False,
        mamba_d_state=16,
        mamba_d_conv=4,
        mamba_n_groups=2,
        mamba_conv_bias=True,
        position_embedding_type="nope",
    ),
    "kimi_linear": tiny_config(
        "kimi_linear",
        {**LATENT_SIZES, **EXPERT_SIZES},
        num_hidden_layers=4,
        model_max_length=CONTEXT,
        linear_attn_config={"num_heads": 4, "head_dim": 16, "kda_layers": [1, 2, 3], "short_conv_kernel_size": 4},
        num_experts_per_token=2,
        num_shared_experts=1,
        first_k_dense_replace=1,
    ),
    "rwkv7": tiny_config(
        "rwkv7",
        norm_eps=1e-5,
        a_low_rank_dim=16,
        v_low_rank_dim=16,
        gate_low_rank_dim=16,
        decay_low_rank_dim=16,
    ),
    "recurrent_gemma": tiny_config(
        "recurrent_gemma",
        num_hidden_layers=3,
        num_key_value_heads=1,
        attention_bias=False,
        conv1d_width=4,
        logits_soft_cap=30.0,
        attention_window_size=WINDOW,
        block_types=["recurrent", "recurrent", "attention"],
    ),
    "lfm2": tiny_config(
        "lfm2",
        _SHORT_CONV,
        block_dim=64,
        block_ff_dim=128,
        block_multiple_of=32,
        block_ffn_dim_multiplier=1.0,
        block_auto_adjust_ff_dim=False,
    ),
    "lfm2_moe": tiny_config(
        "lfm2_moe", _SHORT_CONV, EXPERT_SIZES, norm_topk_prob=True, use_expert_bias=True, num_dense_layers=1
    ),
}
"""By name, which is the model type."""
