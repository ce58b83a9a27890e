from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import pytest

from mlxm.engine.formats.families import FAMILIES, GENERIC, recognise
from mlxm.engine.formats.tools import TOOLS
from tests.engine.formats.transcripts import TRANSCRIPTS

PUBLISHED = os.environ.get("MLXM_CHAT_TEMPLATES", "")
"""A folder of chat templates as published, for a look at the real ones."""


class Sample(NamedTuple):
    """The part of a model's files by which it is recognised, and what is to be found."""

    model_type: str
    template: str
    family: str
    tools: str
    reasoning: str | None = None
    tokens: tuple[str, ...] = ()


JSON_TAGS = "{% if tools %}<tool_call>{{ tools }}{% endif %}"
SAMPLES = (
    Sample("llama", "[INST]<<SYS>>", "llama-2", "json-tags"),
    Sample("llama", '<|start_header_id|>{%- if tools %}ipython\n"parameters": {% endif %}', "llama-3", "llama-json"),
    Sample("llama", "<|start_header_id|>", "llama-3", "json-tags"),
    Sample("llama", "<|im_start|>" + JSON_TAGS, "hermes", "json-tags"),
    Sample(
        "llama",
        "<|start_header_id|>{% for t in tools %}<function=x>{}</function>{% endfor %}",
        "functionary",
        "functionary",
    ),
    Sample("llama", "<|start_header_id|>functools[", "firefunction", "json-tags"),
    Sample(
        "llama",
        "<｜User｜><｜Assistant｜>{% if tools %}<think><｜tool▁calls▁begin｜>```json{% endif %}",
        "deepseek-r1",
        "deepseek",
        "<think>",
    ),
    Sample(
        "deepseek_v3",
        "<｜Assistant｜>{{ thinking }}</think>{{ tools }}<｜tool▁calls▁begin｜>",
        "deepseek-v3",
        "deepseek-bare",
        "<think>",
    ),
    Sample("qwen2", "<|im_start|>" + JSON_TAGS, "qwen2", "json-tags"),
    Sample("qwen2", "<|im_start|>" + JSON_TAGS + "<think></think>", "qwen2", "json-tags", "<think>"),
    Sample("qwen3", "<|im_start|>" + JSON_TAGS, "qwen3", "json-tags", "<think>"),
    Sample(
        "qwen3_moe",
        "<|im_start|>{{ tools }}<tool_call>\n<function=a>\n<parameter=b>",
        "qwen3-coder",
        "qwen-xml",
        "<think>",
    ),
    Sample("mistral", "{{ tools }}[TOOL_CALLS] [", "mistral", "mistral-list"),
    Sample("mistral3", "{{ tools }}[TOOL_CALLS]a[ARGS]b[THINK][/THINK]", "mistral", "mistral-args", "[THINK]"),
    Sample("mixtral", "[INST] [/INST]", "mistral", "json-tags"),
    Sample("gemma3", "<start_of_turn>", "gemma", "json-tags"),
    Sample("glm4", "<|observation|>{{ tools }}", "glm-4", "glm-plain"),
    Sample("glm4_moe", "<|observation|>{{ tools }}<tool_call><arg_key>", "glm-4.5", "glm-xml", "<think>"),
    Sample("phi3", "<|user|><|end|>", "phi", "json-tags"),
    Sample("phi3", "<|user|>{{ tools }}<|tool|><|/tool|>", "phi", "phi-list"),
    Sample("kimi_k2", "<|im_middle|>{{ tools }}<|tool_calls_section_begin|>", "kimi-k2", "kimi", "<think>"),
    Sample("granite", "{{ available_tools }}<|tool_call|><think><response>", "granite", "granite-list", "<think>"),
    Sample(
        "cohere2",
        "{{ tools }}<|START_ACTION|><|START_THINKING|><|END_THINKING|>",
        "command-r",
        "cohere-action",
        "<|START_THINKING|>",
    ),
    Sample("cohere", "{{ tools }}Action: ```json", "command-r", "cohere-fence"),
    Sample("minimax_m2", "{{ tools }}<minimax:tool_call>", "minimax", "minimax-xml", "<think>"),
    Sample("seed_oss", "{{ tools }}<seed:think><seed:tool_call>", "seed-oss", "seed-xml", "<seed:think>"),
    Sample("lfm2", "{{ tools }}<|tool_list_start|>", "lfm2", "python-tags"),
    Sample(
        "longcat_flash", "{{ tools }}<longcat_think><longcat_tool_call>", "generic", "longcat-json", "<longcat_think>"
    ),
    Sample("gemma4", "{{ tools }}<|tool_call>call<tool_call|>", "gemma-4", "gemma-calls", "<|channel>thought"),
    Sample("gemma3_text", "{{ tools }}<start_function_call>", "gemma", "function-gemma"),
    Sample("minicpm", '{{ tools }}<function name="a"><param name="b">', "generic", "minicpm-xml"),
    Sample("other", "{{ tools }}<atem:function_calls>", "generic", "atem-xml"),
    Sample("new", "{{ tools }}<tool_call>", "generic", "json-tags", "<think>", ("<think>", "</think>")),
    Sample("", "<reasoning></reasoning>", "generic", "json-tags", "<reasoning>"),
)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: f"{sample.model_type} {sample.family} {sample.tools}")
def test_a_model_is_recognised_by_its_files(sample: Sample) -> None:
    """The family, the format of calls that comes first, and the tag of thoughts."""
    family = recognise(sample.model_type, sample.template, sample.tokens)
    reasoning = None if family.reasoning is None else family.reasoning.open
    assert (family.name, family.tools[0], reasoning) == (sample.family, sample.tools, sample.reasoning)


def test_harmony_is_recognised_whatever_the_model_type() -> None:
    """Its markers are in every template for it."""
    family = recognise("", "<|start|><|channel|><|message|>{{ reasoning_effort }}", ())
    assert family.is_harmony
    assert "<|call|>" in family.stop_tokens
    assert "<|channel|>" in family.markers


def test_special_tokens_that_are_markup_are_kept() -> None:
    """Whole, or as parts of a family's tags; not those that end answers or turns."""
    tokens = ("<|python_tag|>", "<|eot_id|>", "<|channel>", "｜DSML｜", "[TOOL_CALLS]", "[ARGS]", "</s>")
    kept = {entry.family.name: entry.family.kept_tokens(tokens) for entry in FAMILIES}
    assert kept["llama-3"] == {"<|python_tag|>"}
    assert kept["gemma-4"] == {"<|channel>"}
    assert kept["deepseek-v3"] == {"｜DSML｜"}
    assert kept["mistral"] == {"[TOOL_CALLS]", "[ARGS]"}
    assert kept["qwen3"] == set()


def test_a_model_without_a_template_goes_by_its_type() -> None:
    """The generic one stands for types of no family, or of several."""
    assert recognise("qwen3", None).name == "qwen3"
    assert recognise("llama", None) == GENERIC
    assert recognise("mamba", None) == GENERIC
    assert recognise(None, None) == GENERIC


def test_quirks_are_read_from_the_template() -> None:
    """What it says it reads and refuses, and nothing that only looks alike."""
    quirks = recognise("qwen3", "{% if enable_thinking %}{{ thinking_budget }}{% endif %}{% if tools %}").quirks
    assert (quirks.switch, quirks.budget, quirks.effort, quirks.has_tools) == (
        "enable_thinking",
        "thinking_budget",
        None,
        True,
    )
    quirks = recognise("qwen3", "thinking tools {{ message.tools }} {{ message['thinking'] }}").quirks
    assert (quirks.switch, quirks.has_tools, quirks.alternates) == (None, False, False)
    assert recognise(
        "gemma", '{{ raise_exception("Conversation roles must alternate user/assistant") }}'
    ).quirks.alternates


def test_every_family_names_known_formats_and_stop_tokens() -> None:
    """And every family and format is shown by a transcript."""
    families = [entry.family for entry in FAMILIES]
    assert len({family.name for family in families}) == len(families)
    assert all(family.stop_tokens for family in families)
    assert {name for family in families for name in family.tools} <= set(TOOLS)
    assert {transcript.family for transcript in TRANSCRIPTS} >= {family.name for family in families}


@pytest.mark.skipif(not PUBLISHED, reason="MLXM_CHAT_TEMPLATES names no folder of published templates")
@pytest.mark.parametrize(
    ("part", "model_type", "family"),
    [
        ("command-r-plus", "cohere", "command-r"),
        ("command-r7b", "cohere2", "command-r"),
        ("Mistral-Small", "mistral3", "mistral"),
        ("Mistral-Nemo", "mistral", "mistral"),
        ("Devstral", "mistral", "mistral"),
        ("Hermes-2", "llama", "hermes"),
        ("Hermes-3", "llama", "hermes"),
        ("QwQ", "qwen2", "qwen2"),
        ("Qwen2.5", "qwen2", "qwen2"),
        ("Qwen3", "qwen3", "qwen3"),
        ("R1-Distill-Llama", "llama", "deepseek-r1"),
        ("R1-Distill-Qwen", "qwen2", "deepseek-r1"),
        ("firefunction", "llama", "firefunction"),
        ("gemma", "gemma2", "gemma"),
        ("granite", "granite", "granite"),
        ("medium-v3.1", "llama", "functionary"),
        ("meta-llama-Llama-3.1", "llama", "llama-3"),
        ("Llama-3.2", "llama", "llama-3"),
        ("Llama-3.3", "llama", "llama-3"),
        ("Phi-3.5", "phi3", "phi"),
        ("Kimi", "kimi_k2", "kimi-k2"),
        ("gpt-oss", "gpt_oss", "gpt-oss"),
    ],
)
def test_published_templates_are_recognised(part: str, model_type: str, family: str) -> None:
    """The real template of a model is of the family it is known to be."""
    templates = list(Path(PUBLISHED).glob(f"*{part}*.jinja"))
    assert templates
    for template in templates:
        if "Distill" in template.name and "Distill" not in part:
            continue
        assert recognise(model_type, template.read_text(encoding="utf-8")).name == family
