from __future__ import annotations

from typing import Any

import pytest

from mlxm.catalog.characteristics import describe_config

QWEN = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}


@pytest.mark.parametrize(
    ("config", "name", "kind", "reason"),
    [
        ({**QWEN, "vision_config": {"depth": 2}}, "org/words", "vision", "config.json has vision_config"),
        ({**QWEN, "vision_config": {}}, "org/words", "text", "architectures has Qwen3ForCausalLM"),
        ({**QWEN, "vision_config": None}, "org/words-vl", "text", "architectures has Qwen3ForCausalLM"),
        ({**QWEN, "image_token_id": 7}, "org/words", "vision", "config.json has image_token_id"),
        ({**QWEN, "image_token_index": 0}, "org/words", "vision", "config.json has image_token_index"),
        ({**QWEN, "visual": {"width": 2}}, "org/words", "vision", "config.json has visual"),
        ({"architectures": ["MyVLForCausalLM"]}, "org/words", "vision", "architectures has MyVLForCausalLM"),
        ({"model_type": "moondream1"}, "org/words", "vision", "model_type is moondream1"),
        (QWEN, "org/Words-VL-7B", "text", "architectures has Qwen3ForCausalLM"),
        ({"architectures": "LlamaForCausalLM"}, "", "text", "architectures has LlamaForCausalLM"),
        ({"model_type": "llama"}, "", "text", "model_type is llama"),
        ({"model_type": "bert"}, "", "embedding", "model_type is bert, an encoder"),
        ({"audio_config": {"a": 1}}, "", "audio", "config.json has audio_config"),
        ({"audio_config": {"a": 1}, "vision_config": {"a": 1}}, "", "vision", "config.json has vision_config"),
        ({"n_mels": 80}, "", "audio", "config.json has n_mels"),
        ({"architectures": ["XForSequenceClassification"], "num_labels": 1}, "", "reranker", "with one score"),
        ({"architectures": ["XForSequenceClassification"]}, "", "unknown", "a classifier"),
        ({"model_type": "nobody_knows"}, "", "unknown", "neither config.json, tags nor name say so"),
        ({"architectures": ["Unheard"], "model_type": 7}, "org/Some-Rerank", "reranker", "its name says so"),
        ({}, "", "unknown", "neither config.json, tags nor name say so"),
        ({}, "org/whisper-small", "audio", "its name says so"),
        ({}, "org/llava-next", "vision", "its name says so"),
        ({}, "org/Some-7B-Instruct", "text", "its name says so"),
        ({}, "org/bge-small", "embedding", "its name says so"),
    ],
)
def test_the_configuration_decides_before_the_name(config: dict[str, Any], name: str, kind: str, reason: str) -> None:
    """And what decided is said."""
    found = describe_config(config, name=name)
    assert found.kind == kind
    assert reason in found.kind_reason


@pytest.mark.parametrize(
    ("tags", "kind"),
    [
        (("text-ranking",), "reranker"),
        (("Sentence-Similarity",), "embedding"),
        (("automatic-speech-recognition",), "audio"),
        (("image-text-to-text",), "vision"),
        (("mlx", "text-generation"), "text"),
        (("mlx",), "unknown"),
    ],
)
def test_without_a_configuration_the_tags_decide(tags: tuple[str, ...], kind: str) -> None:
    """They are all that a listing of the Hub has."""
    assert describe_config({}, tags=tags).kind == kind


@pytest.mark.parametrize(
    ("name", "tags", "kind"),
    [
        ("org/Qwen3-Reranker", ("feature-extraction",), "reranker"),
        ("org/words", ("feature-extraction",), "embedding"),
        ("org/words", ("text-ranking",), "reranker"),
        ("org/words", ("image-text-to-text",), "text"),
        ("org/Qwen3-Embedding", (), "embedding"),
        ("org/whisper", (), "text"),
    ],
)
def test_a_writing_model_may_have_another_use(name: str, tags: tuple[str, ...], kind: str) -> None:
    """Its configuration is the same, so what lies beside it counts; but it sees and hears nothing by its name."""
    assert describe_config(QWEN, name=name, tags=tags).kind == kind


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("mlx-community/Qwen3-4B-GGUF", "qwen3"),
        ("mlx-community/Qwen2.5-7B", "qwen2"),
        ("meta-llama/Llama-4-Scout", "llama4"),
        ("meta-llama/Llama-3.2-1B", "llama"),
        ("google/gemma-2-9b-it", "gemma2"),
        ("google/gemma-2b-it", "gemma"),
        ("google/gemma-3-4b-it", "gemma3"),
        ("mistralai/Mixtral-8x7B", "mixtral"),
        ("openai/gpt-oss-20b", "gpt-oss"),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "deepseek"),
        ("org/unheard-of", "unknown"),
    ],
)
def test_a_name_tells_the_family_where_nothing_else_does(name: str, family: str) -> None:
    """A GGUF file has no config.json beside it."""
    assert describe_config({}, name=name).family == family
