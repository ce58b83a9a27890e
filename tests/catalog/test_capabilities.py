from __future__ import annotations

import pytest

from mlxm.catalog.capabilities import Capability, Evidence, reasoning_of, tool_use_of


def evidence(**differences: object) -> Evidence:
    """A text model of which nothing is known, but for the differences."""
    return Evidence(**{"kind": "text", "family": "unknown", **differences})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (
            evidence(tags=("mlx", "Function-Calling"), family="qwen3", template=""),
            Capability("yes", "tags", "tagged function-calling"),
        ),
        (
            evidence(family="qwen3", template="no word of it"),
            Capability("yes", "family", "qwen3 models of this name are trained to call tools"),
        ),
        (
            evidence(family="llama", name="meta-llama/Llama-3.1-8B-Instruct"),
            Capability("yes", "family", "llama models of this name are trained to call tools"),
        ),
        (
            evidence(tokenizer_config={"tool_parser_type": "json_tools"}, template="x"),
            Capability("yes", "config", "tokenizer_config.json has tool_parser_type json_tools"),
        ),
        (
            evidence(template="{%- if tools %}x{% endif %}"),
            Capability("yes", "template", "its chat template takes tools"),
        ),
        (evidence(template="{{ tools | tojson }}"), Capability("yes", "template", "its chat template takes tools")),
        (
            evidence(template="You have tools. {{ messages }}"),
            Capability("no", "template", "its chat template takes no tools"),
        ),
        (evidence(template=""), Capability("unknown", None, "it has no chat template")),
        (evidence(), Capability("unknown", None, "nothing says so")),
        (
            evidence(kind="embedding", tags=("tool-use",)),
            Capability("no", "config", "its kind is embedding, which calls nothing"),
        ),
    ],
)
def test_each_tier_answers_tool_use_in_its_turn(seen: Evidence, expected: Capability) -> None:
    """Tags, then the family, then configuration and template; and which of them it was is said."""
    assert tool_use_of(seen) == expected


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llama", "meta-llama/Llama-2-7b-chat-hf"),
        ("llama", "meta-llama/Llama-3.2-1B"),
        ("qwen2", "Qwen/Qwen2.5-VL-7B-Instruct"),
        ("qwen3", "Qwen/Qwen3-4B-Base"),
        ("mistral", "mistralai/Mistral-7B-Instruct-v0.1"),
        ("glm4", "zai-org/GLM-OCR"),
    ],
)
def test_a_family_says_nothing_of_those_of_its_models_that_were_not_trained_so(family: str, name: str) -> None:
    """What is not known is unknown, and not no."""
    assert tool_use_of(evidence(family=family, name=name)) == Capability()


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (evidence(tags=("reasoning",), template=""), Capability("yes", "tags", "tagged reasoning")),
        (evidence(family="gpt-oss"), Capability("yes", "family", "its family always thinks first")),
        (evidence(name="org/QwQ-32B"), Capability("yes", "family", "models of this name think first")),
        (evidence(name="org/DeepSeek-R1-Distill"), Capability("yes", "family", "models of this name think first")),
        (
            evidence(name="Qwen/Qwen3-4B-Instruct-2507", template="{{ reasoning_content }}"),
            Capability("no", "family", "models of this name answer without thinking first"),
        ),
        (
            evidence(template="{% if enable_thinking %}"),
            Capability("yes", "template", "its chat template has enable_thinking"),
        ),
        (evidence(template="{%- elif thinking %}"), Capability("yes", "template", "its chat template has thinking")),
        (evidence(template="[THINK]"), Capability("yes", "template", "its chat template has [THINK]")),
        (evidence(template="hello"), Capability("no", "template", "its chat template has no place for thoughts")),
        (evidence(template=""), Capability("unknown", None, "it has no chat template")),
        (evidence(), Capability()),
        (evidence(kind="audio"), Capability("no", "config", "its kind is audio, which writes nothing")),
    ],
)
def test_each_tier_answers_reasoning_in_its_turn(seen: Evidence, expected: Capability) -> None:
    """The same three tiers."""
    assert reasoning_of(seen) == expected


def test_a_template_made_to_be_slow_to_search_is_not() -> None:
    """It comes from a stranger, and a pattern that tries every split would take days."""
    template = "{%" * 500_000 + "{{" * 500_000
    assert tool_use_of(evidence(template=template)).answer == "no"
    assert reasoning_of(evidence(template=template)).answer == "no"
