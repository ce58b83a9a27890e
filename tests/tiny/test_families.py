"""What each family's chat template makes of a conversation."""

from __future__ import annotations

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mlxm.tiny.families import FAMILIES

MESSAGES = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Why?"},
]

EXPECTED = {
    "llama3": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe short.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "chatml": (
        "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    ),
    "mistral": "<s>[INST] Be short.\n\nHi [/INST] Hello</s>[INST] Why? [/INST]",
    "gemma": (
        "<bos><start_of_turn>user\nBe short.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n"
        "<start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\n"
    ),
    "phi3": (
        "<|system|>\nBe short.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nHello<|end|>\n"
        "<|user|>\nWhy?<|end|>\n<|assistant|>\n"
    ),
    "deepseek": (
        "<｜begin▁of▁sentence｜>Be short."
        "<｜User｜>Hi<｜Assistant｜>Hello<｜end▁of▁sentence｜><｜User｜>Why?<｜Assistant｜>"
    ),
    "harmony": (
        "<|start|>system<|message|>Be short.<|end|><|start|>user<|message|>Hi<|end|>"
        "<|start|>assistant<|channel|>final<|message|>Hello<|end|><|start|>user<|message|>Why?<|end|><|start|>assistant"
    ),
    "generic": "system: Be short.\nuser: Hi\nassistant: Hello\nuser: Why?\nassistant:",
}


def rendered(family: str, *, add_generation_prompt: bool) -> str:
    """The conversation as the sandboxed template engine lays it out, set up as for real templates."""
    known = FAMILIES[family]
    template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(known.chat_template)
    return template.render(
        messages=MESSAGES,
        add_generation_prompt=add_generation_prompt,
        bos_token=known.bos,
        eos_token=known.eos[0],
    )


def test_every_family_has_an_expected_layout() -> None:
    """No family goes untested."""
    assert EXPECTED.keys() == FAMILIES.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_conversation_is_laid_out_as_the_family_expects(family: str) -> None:
    """System, user and assistant turns stand where the family's models look for them."""
    assert rendered(family, add_generation_prompt=True) == EXPECTED[family]


@pytest.mark.parametrize("family", FAMILIES)
def test_without_generation_prompt_the_last_turn_is_the_end(family: str) -> None:
    """What invites the answer is the only difference."""
    closed = rendered(family, add_generation_prompt=False)
    assert EXPECTED[family].startswith(closed)
    assert "Why?" in closed


@pytest.mark.parametrize("family", FAMILIES)
def test_the_roles_that_end_an_answer_are_markers_of_the_family(family: str) -> None:
    """Beginning, end and padding are all among the tokens that the tokenizer knows."""
    known = FAMILIES[family]
    assert {*known.eos, known.pad, *([known.bos] if known.bos else [])} <= set(known.special)
