"""What a model is for: the configuration decides, then the files and tags that lie beside it, and its name last."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal

from mlxm.catalog.config import Config
from mlxm.catalog.families import UNKNOWN, family_of_type

Kind = Literal["text", "vision", "embedding", "reranker", "audio", "unknown"]
Verdict = tuple[Kind, str]

_AUDIO_TYPES: Final = frozenset(
    {
        *("whisper", "wav2vec2", "wav2vec2-bert", "hubert", "speecht5", "parler_tts", "bark", "musicgen", "kokoro"),
        *("qwen2_audio", "qwen2_audio_encoder", "voxtral", "csm", "dia", "moshi", "mimi", "encodec", "vits", "snac"),
        *("seamless_m4t", "seamless_m4t_v2", "clap", "ultravox", "parakeet", "xcodec", "outetts", "spark_tts"),
        *(
            "granite_speech",
            "vibevoice",
            "qwen3_tts",
            "qwen3_asr",
            "audio_spectrogram_transformer",
            "nemotron_voicechat",
        ),
    }
)
_AUDIO_KEYS: Final = ("n_mels", "num_mel_bins", "istftnet", "n_audio_ctx")
_EMBEDDING_TYPES: Final = frozenset(
    {
        *("siglip", "siglip2", "clip", "colqwen2_5", "colidefics3", "colpali", "llama_bidirec", "qwen3_vl_embedding"),
        *("llama_nemotron_vl", "gemma3_embedding", "qwen3_embedding", "embedding_gemma2", "ministral3_embedding"),
        *("lfm2_embedding", "lfm2_colbert", "lfm2_encoder", "jina_vlm_embedding", "llama_nemotron_vl_embedding"),
    }
)
_ENCODER_TYPES: Final = frozenset(
    {
        *("bert", "distilbert", "roberta", "camembert", "mpnet", "electra", "deberta-v2", "nomic_bert", "new"),
        *("xlm-roberta", "xlm_roberta", "modernbert", "albert", "eurobert", "gte"),
    }
)
_VISION_TYPES: Final = frozenset(
    {
        *("mllama", "moondream1", "moondream2", "moondream3", "florence2", "phi3_v", "phi4mm", "minicpmv", "minicpmo"),
        *("molmo", "molmo2", "idefics2", "idefics3", "smolvlm", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"),
        *("llava", "llava_next", "llava_onevision", "llava_bunny", "llava-qwen2", "bunny-llama", "fastvlm", "pixtral"),
        *("paligemma", "aya_vision", "internvl_chat", "internvl", "kimi_vl", "deepseek_vl_v2", "multi_modality"),
        *("glm4v", "glm4v_moe", "glm_ocr", "deepseekocr", "dots_ocr", "lfm2_vl", "lfm2-vl", "ernie4_5_moe_vl"),
    }
)
_VISION_PARTS: Final = ("vision_config", "visual", "vision_tower", "mm_vision_tower", "img_processor", "vision_encoder")
_IMAGE_TOKENS: Final = ("image_token_id", "image_token_index", "img_context_token_id", "image_token")
_VISION_CLASSES: Final = re.compile(r"VL|Vision|Llava|Paligemma|Pixtral|Molmo|SmolVLM|Idefics", re.ASCII)
_WRITING_CLASSES: Final = re.compile(
    r"(ForCausalLM|LMHeadModel|ForConditionalGeneration|LMModel|ChatGLMModel)\w*$", re.ASCII
)
_SCORING_CLASS: Final = "ForSequenceClassification"
_VISION_WEIGHTS: Final = re.compile(r"vision|visual|image|img_|patch_embed|mm_projector|multi_modal|siglip|vit\b")

_TAGS: Final[tuple[tuple[frozenset[str], Kind], ...]] = (
    (frozenset({"text-ranking", "reranker", "cross-encoder"}), "reranker"),
    (frozenset({"sentence-similarity", "feature-extraction", "sentence-transformers", "embeddings"}), "embedding"),
    (frozenset({"automatic-speech-recognition", "text-to-speech", "text-to-audio", "audio-classification"}), "audio"),
    (frozenset({"image-text-to-text", "video-text-to-text", "visual-question-answering", "any-to-any"}), "vision"),
    (frozenset({"text-generation", "conversational"}), "text"),
)
_NAME_PATTERNS: Final[tuple[tuple[str, Kind], ...]] = (
    (r"re-?rank", "reranker"),
    (r"embed|\b(bge|gte|e5)-|minilm|colbert|sentence-", "embedding"),
    (r"whisper|kokoro|parler|\btts\b|[-_]tts|parakeet|\basr\b|[-_]asr|voxtral|speech|\bbark", "audio"),
    (r"\bvl\b|[-_]vl[-_0-9]|vision|llava|pixtral|vlm|moondream|paligemma|florence|[-_]ocr", "vision"),
    (r"instruct|chat|[-_]it\b|\bgpt|coder|[0-9]b\b", "text"),
)
_NAMES: Final = tuple((re.compile(pattern, re.IGNORECASE), kind) for pattern, kind in _NAME_PATTERNS)
_USES: Final = ("reranker", "embedding")
"""What a model that can write may have been trained for instead; its config.json does not show it."""


def kind_of(
    config: Config | None,
    *,
    name: str = "",
    tags: Sequence[str] = (),
    files: Iterable[str] = (),
    tensors: Iterable[str] | None = None,
) -> Verdict:
    """The kind and what decided; `files` and `tensors` are names, for models that are here."""
    sure = None if config is None else _by_config(config)
    if sure is None:
        return _by_tags(tags) or _by_name(name) or ("unknown", "neither config.json, tags nor name say so")
    if sure[0] in ("text", "vision"):
        use = _other_use(name, tags, files)
        if use is not None:
            return use
    if sure[0] == "vision" and tensors is not None and not any(map(_VISION_WEIGHTS.search, tensors)):
        return "text", f"{sure[1]}, but the weights hold no vision part"
    return sure


def _by_config(config: Config) -> Verdict | None:
    """In order: parts that only one kind has, then classes, then the architecture."""
    return _by_type(config) or _by_parts(config) or _by_class(config) or _by_family(config)


def _by_type(config: Config) -> Verdict | None:
    model_type = config.model_type
    reason = f"model_type is {model_type}"
    if model_type in _AUDIO_TYPES:
        return "audio", reason
    if model_type in _EMBEDDING_TYPES:
        return "embedding", reason
    audio_key = next((key for key in _AUDIO_KEYS if key in config.whole), None)
    if audio_key is not None and "vision_config" not in config.whole:
        return "audio", f"config.json has {audio_key}"
    return None


def _by_parts(config: Config) -> Verdict | None:
    thinker = config.whole.get("thinker_config")
    parts = thinker if isinstance(thinker, Mapping) else config.whole
    for key in _VISION_PARTS:
        if parts.get(key):
            return "vision", f"config.json has {key}"
    if parts.get("audio_config"):
        return "audio", "config.json has audio_config"
    for key in _IMAGE_TOKENS:
        if config.whole.get(key) is not None:
            return "vision", f"config.json has {key}"
    if config.model_type in _VISION_TYPES:
        return "vision", f"model_type is {config.model_type}"
    return None


def _by_class(config: Config) -> Verdict | None:
    for name in config.architectures:
        reason = f"architectures has {name}"
        if name.endswith(_SCORING_CLASS):
            return _scoring(config, reason)
        if _VISION_CLASSES.search(name):
            return "vision", reason
        if config.model_type in _ENCODER_TYPES:
            return "embedding", f"{reason}, an encoder"
        if _WRITING_CLASSES.search(name):
            return "text", reason
        if name.endswith("Model"):
            return "embedding", f"{reason}, which has no head that writes"
    return None


def _scoring(config: Config, reason: str) -> Verdict:
    """One score is a rank; several are classes, which is none of our kinds."""
    labels = config.whole.get("id2label")
    num_labels = len(labels) if isinstance(labels, dict) else config.number("num_labels")
    if num_labels == 1:
        return "reranker", f"{reason} with one score"
    return "unknown", f"{reason}, a classifier"


def _by_family(config: Config) -> Verdict | None:
    if config.model_type in _ENCODER_TYPES:
        return "embedding", f"model_type is {config.model_type}, an encoder"
    if family_of_type(config.model_type) != UNKNOWN:
        return "text", f"model_type is {config.model_type}"
    return None


def _other_use(name: str, tags: Sequence[str], files: Iterable[str]) -> Verdict | None:
    """Rerankers and embedding models that share their configuration with a model that writes."""
    named = _by_name(name)
    if named is not None and named[0] == "reranker":
        return named
    pooling = next((file for file in files if file == "modules.json" or file.endswith("_Pooling")), None)
    if pooling is not None:
        return "embedding", f"{pooling} says how its vectors are pooled"
    for verdict in (_by_tags(tags), named):
        if verdict is not None and verdict[0] in _USES:
            return verdict
    return None


def _by_tags(tags: Sequence[str]) -> Verdict | None:
    for known, kind in _TAGS:
        found = sorted(known.intersection(tag.lower() for tag in tags))
        if found:
            return kind, f"tagged {found[0]}"
    return None


def _by_name(name: str) -> Verdict | None:
    return next(((kind, "its name says so") for pattern, kind in _NAMES if pattern.search(name)), None)
