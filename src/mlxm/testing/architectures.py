"""Tiny configurations, one for each architecture that mlxm claims to run.

They keep what makes an architecture different: windows, sinks, experts, latent caches, recurrent states.
"""

from __future__ import annotations

from typing import Final

from mlxm.testing.recurrent import RECURRENT
from mlxm.testing.shapes import CONTEXT, EXPERT_SIZES, GRANITE_SCALES, LATENT_SIZES, WINDOW, Config, tiny_config
from mlxm.tiny.tokenizer import VOCAB_SIZE

_SLIDING_FIRST: Final = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
_SLIDING_BEFORE_LAST: Final = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]
_LATENT_EXPERTS: Final[Config] = {
    **LATENT_SIZES,
    "moe_intermediate_size": 64,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.0,
}
_LONG_CONTEXT: Final[Config] = {
    "type": "longrope",
    "short_factor": [1.0] * 8,
    "long_factor": [1.0] * 8,
    "original_max_position_embeddings": CONTEXT,
}
_YARN: Final[Config] = {
    "type": "yarn",
    "factor": 4.0,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": CONTEXT // 4,
}


def _gemma4_layers() -> Config:
    return tiny_config(
        "gemma4_text",
        num_hidden_layers=6,
        global_head_dim=32,
        num_key_value_heads=1,
        num_kv_shared_layers=2,
        hidden_size_per_layer_input=32,
        vocab_size_per_layer_input=VOCAB_SIZE,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2,
        rope_parameters={
            "full_attention": {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
        tie_word_embeddings=True,
    )


def _gemma3n_text() -> Config:
    return tiny_config(
        "gemma3n_text",
        num_hidden_layers=6,
        num_kv_shared_layers=2,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2,
        sliding_window=WINDOW,
        rope_local_base_freq=10000.0,
        vocab_size_per_layer_input=VOCAB_SIZE,
        hidden_size_per_layer_input=32,
        final_logit_softcapping=30.0,
        activation_sparsity_pattern=[0.5, 0.5, 0.5, 0.0, 0.0, 0.0],
        altup_num_inputs=2,
        altup_coef_clip=120.0,
        altup_correct_scale=True,
        altup_active_idx=0,
        laurel_rank=16,
        tie_word_embeddings=True,
    )


DENSE: Final[dict[str, Config]] = {
    "llama": tiny_config("llama"),
    "mistral": tiny_config("mistral"),
    "qwen2": tiny_config("qwen2", tie_word_embeddings=True),
    "qwen3": tiny_config("qwen3"),
    "gemma": tiny_config("gemma", num_key_value_heads=1, tie_word_embeddings=True),
    "gemma2": tiny_config("gemma2", query_pre_attn_scalar=16, tie_word_embeddings=True),
    "glm4": tiny_config("glm4", attention_bias=True, partial_rotary_factor=0.5),
    "phi3": tiny_config("phi3", original_max_position_embeddings=CONTEXT),
    "phi": tiny_config("phi", num_key_value_heads=4, partial_rotary_factor=0.5, layer_norm_eps=1e-5),
    "olmo2": tiny_config("olmo2"),
    "smollm3": tiny_config("smollm3", num_hidden_layers=4, tie_word_embeddings=True),
    "starcoder2": tiny_config("starcoder2", norm_epsilon=1e-5, tie_word_embeddings=True),
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": VOCAB_SIZE,
        "n_embd": 64,
        "n_layer": 3,
        "n_head": 4,
        "n_ctx": CONTEXT,
        "n_positions": CONTEXT,
        "layer_norm_epsilon": 1e-5,
    },
    "gpt_bigcode": {
        "model_type": "gpt_bigcode",
        "vocab_size": VOCAB_SIZE,
        "n_embd": 64,
        "n_layer": 3,
        "n_head": 4,
        "n_inner": 128,
        "n_positions": CONTEXT,
        "layer_norm_epsilon": 1e-5,
    },
    "gpt_neox": tiny_config("gpt_neox", layer_norm_eps=1e-5, rotary_emb_base=10000, rotary_pct=0.5),
    "granite": tiny_config("granite", GRANITE_SCALES),
    "cohere": tiny_config("cohere", layer_norm_eps=1e-5, logit_scale=0.5, tie_word_embeddings=True),
    "stablelm": tiny_config("stablelm", use_qkv_bias=True, partial_rotary_factor=0.5, layer_norm_eps=1e-5),
    "minicpm": tiny_config("minicpm", dim_model_base=64, scale_depth=1.4, scale_emb=4.0),
    "internlm2": tiny_config("internlm2", bias=True),
    "internlm3": tiny_config("internlm3", bias=False, qkv_bias=False),
    "nemotron": tiny_config("nemotron", hidden_act="relu2", norm_eps=1e-5, partial_rotary_factor=0.5),
    "exaone": tiny_config("exaone", num_layers=3, layer_norm_epsilon=1e-5),
    "seed_oss": tiny_config("seed_oss", attention_bias=True),
    "ernie4_5": tiny_config("ernie4_5", use_bias=False, tie_word_embeddings=True),
    "hunyuan_v1_dense": tiny_config("hunyuan_v1_dense"),
    "afm7": {
        "model_type": "afm7",
        "vocab_size": VOCAB_SIZE,
        "hidden_dim": 64,
        "num_layers": 4,
        "num_kv_reuse_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "hidden_dim_scale_factor": 2.0,
    },
}
"""Full attention in every layer, one feed-forward block."""

EXPERTS: Final[dict[str, Config]] = {
    "qwen2_moe": tiny_config("qwen2_moe", EXPERT_SIZES, shared_expert_intermediate_size=64),
    "qwen3_moe": tiny_config("qwen3_moe", EXPERT_SIZES, decoder_sparse_step=1, mlp_only_layers=[], norm_topk_prob=True),
    "mixtral": tiny_config("mixtral", num_local_experts=4, num_experts_per_tok=2),
    "olmoe": tiny_config("olmoe", EXPERT_SIZES, intermediate_size=64, norm_topk_prob=True),
    "granitemoe": tiny_config("granitemoe", GRANITE_SCALES, num_local_experts=4, num_experts_per_tok=2),
    "glm4_moe": tiny_config(
        "glm4_moe",
        {**_LATENT_EXPERTS, "num_key_value_heads": 2},
        norm_topk_prob=True,
        use_qk_norm=True,
        attention_bias=True,
        partial_rotary_factor=0.5,
        rope_scaling=None,
    ),
}
"""Full attention in every layer, a router in front of the feed-forward blocks."""

WINDOWED: Final[dict[str, Config]] = {
    "llama_sliding": tiny_config("llama", num_hidden_layers=4, layer_types=_SLIDING_FIRST, sliding_window=WINDOW),
    "ministral3": tiny_config(
        "ministral3",
        num_hidden_layers=4,
        layer_types=_SLIDING_FIRST,
        sliding_window=WINDOW,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": CONTEXT,
        },
    ),
    "gemma3_text": tiny_config(
        "gemma3_text",
        num_hidden_layers=4,
        num_key_value_heads=1,
        query_pre_attn_scalar=16,
        sliding_window=WINDOW,
        sliding_window_pattern=2,
        tie_word_embeddings=True,
    ),
    "gemma4_text": _gemma4_layers(),
    "gpt_oss": tiny_config(
        "gpt_oss",
        num_hidden_layers=4,
        num_local_experts=4,
        num_experts_per_tok=2,
        layer_types=_SLIDING_FIRST,
        sliding_window=WINDOW,
        rope_scaling={**_YARN, "rope_type": "yarn", "truncate": False},
    ),
    "cohere2": tiny_config(
        "cohere2",
        num_hidden_layers=4,
        layer_norm_eps=1e-5,
        logit_scale=0.5,
        sliding_window=WINDOW,
        sliding_window_pattern=2,
        tie_word_embeddings=True,
    ),
    "exaone4": tiny_config(
        "exaone4",
        num_hidden_layers=4,
        layer_types=_SLIDING_BEFORE_LAST,
        sliding_window=WINDOW,
        sliding_window_pattern="LLLG",
        rope_scaling=None,
    ),
    "exaone_moe": tiny_config(
        "exaone_moe",
        EXPERT_SIZES,
        num_hidden_layers=4,
        layer_types=_SLIDING_BEFORE_LAST,
        sliding_window=WINDOW,
        num_shared_experts=1,
        is_moe_layer=[False, True, True, True],
    ),
    "mimo_v2_flash": tiny_config(
        "mimo_v2_flash",
        num_hidden_layers=4,
        hybrid_layer_pattern=[0, 1, 0, 1],
        moe_layer_freq=[0, 1, 1, 1],
        add_swa_attention_sink_bias=True,
        add_full_attention_sink_bias=False,
        sliding_window_size=WINDOW,
        moe_intermediate_size=64,
        n_shared_experts=None,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        norm_topk_prob=True,
        routed_scaling_factor=None,
        scoring_func="sigmoid",
        topk_method="noaux_tc",
        layernorm_epsilon=1e-5,
        swa_rope_theta=1000.0,
        swa_num_attention_heads=4,
        swa_num_key_value_heads=2,
        v_head_dim=16,
        swa_head_dim=16,
        swa_v_head_dim=16,
        partial_rotary_factor=0.5,
    ),
    "gemma3n": {"model_type": "gemma3n", "vocab_size": VOCAB_SIZE, "text_config": _gemma3n_text()},
    "llama4": {
        "model_type": "llama4",
        "vocab_size": VOCAB_SIZE,
        "text_config": tiny_config(
            "llama4_text",
            num_hidden_layers=4,
            attention_bias=False,
            attention_chunk_size=WINDOW,
            interleave_moe_layer_step=2,
            intermediate_size_mlp=128,
            num_local_experts=2,
            num_experts_per_tok=1,
            rope_scaling=None,
            use_qk_norm=True,
        ),
    },
    "olmo3": tiny_config("olmo3", num_hidden_layers=4, layer_types=_SLIDING_FIRST, sliding_window=WINDOW),
}
"""Some layers see only the latest tokens."""

LATENT: Final[dict[str, Config]] = {
    "deepseek_v2": tiny_config("deepseek_v2", _LATENT_EXPERTS, rope_scaling=_YARN),
    "deepseek_v3": tiny_config("deepseek_v3", _LATENT_EXPERTS),
    "deepseek_v32": tiny_config("deepseek_v32", _LATENT_EXPERTS, index_head_dim=32, index_n_heads=4, index_topk=WINDOW),
    "glm4_moe_lite": tiny_config("glm4_moe_lite", _LATENT_EXPERTS, n_group=1),
    "longcat_flash": tiny_config(
        "longcat_flash",
        LATENT_SIZES,
        num_layers=2,
        ffn_hidden_size=128,
        expert_ffn_hidden_size=64,
        n_routed_experts=4,
        zero_expert_num=2,
        zero_expert_type="identity",
        moe_topk=2,
        routed_scaling_factor=1.0,
        attention_method="MLA",
        attention_bias=False,
        mla_scale_q_lora=True,
        mla_scale_kv_lora=True,
    ),
    "minicpm3": tiny_config(
        "minicpm3", LATENT_SIZES, dim_model_base=64, scale_depth=1.4, scale_emb=4.0, rope_scaling=_LONG_CONTEXT
    ),
}
"""Keys and values are kept compressed, or are rebuilt from a compressed form."""

ARCHITECTURES: Final[dict[str, Config]] = {**DENSE, **EXPERTS, **WINDOWED, **LATENT, **RECURRENT}
"""Every configuration by name; the name is the model type except for `llama_sliding`."""
