"""Which family a model belongs to: by model_type, and by name only where nothing else is known."""

from __future__ import annotations

import re
from typing import Final

UNKNOWN: Final = "unknown"

_OF_TYPE: Final = {
    "llama": ("llama", "llama_bidirec", "llama_nemotron_vl"),
    "llama4": ("llama4", "llama4_text"),
    "mllama": ("mllama", "mllama_text_model"),
    "qwen": ("qwen",),
    "qwen2": ("qwen2", "qwen2_moe", "qwen2_vl", "qwen2_5_vl", "qwen2_audio", "qwen2_5_omni", "colqwen2_5"),
    "qwen3": (
        *("qwen3", "qwen3_moe", "qwen3_next", "qwen3_vl", "qwen3_vl_moe", "qwen3_omni_moe"),
        *("qwen3_5", "qwen3_5_moe", "qwen3_5_text", "qwen3_5_moe_text", "qwen3_vl_embedding", "qwen3_embedding"),
    ),
    "mistral": ("mistral", "mistral3", "mistral4", "ministral3", "ministral", "pixtral", "voxtral"),
    "mixtral": ("mixtral",),
    "gemma": ("gemma",),
    "gemma2": ("gemma2",),
    "gemma3": ("gemma3", "gemma3_text", "gemma3_embedding"),
    "gemma3n": ("gemma3n", "gemma3n_text"),
    "gemma4": ("gemma4", "gemma4_text", "gemma4_unified", "diffusion_gemma"),
    "recurrent_gemma": ("recurrent_gemma",),
    "paligemma": ("paligemma", "paligemma2"),
    "glm4": ("glm", "glm4", "glm4_moe", "glm4_moe_lite", "glm4v", "glm4v_moe", "glm_moe_dsa", "glm_ocr", "chatglm"),
    "deepseek": (
        *("deepseek", "deepseek_v2", "deepseek_v3", "deepseek_v32", "deepseek_v4", "deepseek_v41"),
        *("deepseek_vl_v2", "deepseekocr", "deepseek_vl"),
    ),
    "kimi": ("kimi_k2", "kimi_k25", "kimi_k3", "kimi_linear", "kimi_vl"),
    "gpt-oss": ("gpt_oss",),
    "phi": ("phi", "phi-msft", "phi3", "phi3small", "phi3_v", "phi4mm", "phimoe", "phixtral", "phi4_siglip"),
    "smollm": ("smollm3",),
    "smolvlm": ("smolvlm",),
    "idefics": ("idefics", "idefics2", "idefics3"),
    "olmo": ("olmo", "olmo2", "olmo3", "olmoe", "olmo_hybrid", "molmo", "molmo2"),
    "granite": ("granite", "granitemoe", "granitemoehybrid", "granite_vision", "granite4_vision"),
    "cohere": ("cohere", "cohere2", "cohere2_moe", "aya_vision"),
    "minimax": ("minimax", "minimax_m2", "minimax_m3", "minimax_m3_vl"),
    "minicpm": ("minicpm", "minicpm3", "minicpmv", "minicpmo", "minicpmv4_6", "minicpmv4_7"),
    "internlm": ("internlm2", "internlm3"),
    "internvl": ("internvl_chat", "internvl"),
    "exaone": ("exaone", "exaone4", "exaone_moe"),
    "ernie": ("ernie4_5", "ernie4_5_moe", "ernie4_5_moe_vl"),
    "hunyuan": ("hunyuan", "hunyuan_v1_dense", "hunyuan_vl"),
    "nemotron": ("nemotron", "nemotron_h", "nemotron-nas", "nemotron_nas"),
    "falcon": ("falcon", "falcon_h1", "falcon_mamba"),
    "starcoder": ("starcoder2", "gpt_bigcode"),
    "gpt2": ("gpt2",),
    "gpt-neox": ("gpt_neox",),
    "stablelm": ("stablelm",),
    "mamba": ("mamba", "mamba2"),
    "rwkv": ("rwkv7",),
    "jamba": ("jamba",),
    "lfm2": ("lfm2", "lfm2_moe", "lfm2_vl", "lfm2-vl"),
    "seed": ("seed_oss",),
    "mimo": ("mimo", "mimo_v2_flash", "mimo_v2"),
    "longcat": ("longcat_flash", "longcat_flash_ngram"),
    "bailing": ("bailing_moe", "bailing_moe_linear", "bailing_hybrid", "bailing_moe_v3"),
    "dots": ("dots1", "dots_ocr"),
    "apertus": ("apertus",),
    "plamo": ("plamo", "plamo2", "plamo3"),
    "openelm": ("openelm",),
    "dbrx": ("dbrx",),
    "bitnet": ("bitnet",),
    "helium": ("helium",),
    "llava": ("llava", "llava_next", "llava_onevision", "llava_bunny", "llava-qwen2", "bunny-llama", "fastvlm"),
    "moondream": ("moondream1", "moondream2", "moondream3"),
    "florence": ("florence2",),
    "bert": ("bert", "distilbert", "roberta", "camembert", "mpnet", "electra", "deberta-v2", "nomic_bert", "new"),
    "xlm-roberta": ("xlm-roberta", "xlm_roberta"),
    "modernbert": ("modernbert",),
    "siglip": ("siglip", "siglip2"),
    "clip": ("clip",),
    "whisper": ("whisper",),
    "parler": ("parler_tts",),
}
_BY_TYPE: Final = {model_type: family for family, types in _OF_TYPE.items() for model_type in types}

_BY_NAME: Final = tuple(
    (re.compile(pattern, re.IGNORECASE), family)
    for pattern, family in (
        (r"qwen[-_ ]?3", "qwen3"),
        (r"qwen[-_ ]?2|qwq", "qwen2"),
        (r"llama[-_ ]?4", "llama4"),
        (r"deepseek", "deepseek"),
        (r"code[-_]?llama|llama|vicuna|hermes", "llama"),
        (r"mixtral", "mixtral"),
        (r"mistral|ministral|devstral|codestral|magistral|pixtral", "mistral"),
        (r"gemma[-_ ]?4", "gemma4"),
        (r"gemma[-_ ]?3n", "gemma3n"),
        (r"(embedding)?gemma[-_ ]?3|embeddinggemma", "gemma3"),
        (r"gemma[-_ ]?2(?!b)", "gemma2"),
        (r"gemma", "gemma"),
        (r"glm[-_ ]?[45]", "glm4"),
        (r"kimi", "kimi"),
        (r"gpt[-_]oss", "gpt-oss"),
        (r"phi[-_ ]?[0-9]", "phi"),
        (r"smolvlm", "smolvlm"),
        (r"smollm", "smollm"),
        (r"olmo", "olmo"),
        (r"granite", "granite"),
        (r"command[-_]r|\baya", "cohere"),
        (r"whisper", "whisper"),
        (r"kokoro", "kokoro"),
        (r"parler", "parler"),
    )
)


def family_of_type(model_type: str | None) -> str:
    """The family of a model_type, "unknown" when it is in no table."""
    return UNKNOWN if model_type is None else _BY_TYPE.get(model_type.lower(), UNKNOWN)


def family_of_name(name: str) -> str:
    """The family that a name speaks of, "unknown" when it speaks of none."""
    return next((family for pattern, family in _BY_NAME if pattern.search(name)), UNKNOWN)
