"""Chat families: which markers a kind of model uses, how its prompt is laid out, and what ends its answer.

The layouts are those that real models of the family were trained on; the templates here cover plain text turns only.
"""

from __future__ import annotations

from typing import Final

import msgspec


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """One family's markers and chat template.

    `special` tokens are hidden from decoded text, `visible` ones are single tokens that stay in it. The first of `eos`
    ends a document, the others end a turn. `adds_bos` says that the tokenizer itself puts `bos` before every text.
    """

    special: tuple[str, ...]
    visible: tuple[str, ...] = ()
    bos: str | None = None
    eos: tuple[str, ...]
    pad: str
    adds_bos: bool = False
    chat_template: str


_LLAMA3 = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n{{ message['content'] | trim }}<|eot_id|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)

_CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_MISTRAL = (
    "{{ bos_token }}{% set held = namespace(text='') %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %} {{ message['content'] | trim }}{{ eos_token }}"
    "{% elif message['role'] == 'user' %}[INST] {{ held.text }}{{ message['content'] }} [/INST]{% set held.text = '' %}"
    "{% else %}{% set held.text = held.text + message['content'] + '\n\n' %}{% endif %}"
    "{% endfor %}"
)

_GEMMA = (
    "{{ bos_token }}{% set held = namespace(text='') %}"
    "{% for message in messages %}"
    "{% if message['role'] in ('user', 'assistant') %}"
    "<start_of_turn>{{ 'model' if message['role'] == 'assistant' else 'user' }}\n"
    "{{ held.text }}{{ message['content'] | trim }}<end_of_turn>\n{% set held.text = '' %}"
    "{% else %}{% set held.text = held.text + message['content'] + '\n\n' %}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)

_PHI3 = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)

_DEEPSEEK = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<｜Assistant｜>{{ message['content'] }}{{ eos_token }}"
    "{% elif message['role'] == 'user' %}<｜User｜>{{ message['content'] }}"
    "{% else %}{{ message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜>{% endif %}"
)

_HARMONY = (
    "{% for message in messages %}"
    "<|start|>{{ message['role'] }}"
    "{% if message['role'] == 'assistant' %}<|channel|>final{% endif %}"
    "<|message|>{{ message['content'] }}<|end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)

_GENERIC = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)

FAMILIES: Final[dict[str, Family]] = {
    "llama3": Family(
        special=(
            *("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
            *("<|eom_id|>", "<|python_tag|>", "<|finetune_right_pad_id|>"),
        ),
        bos="<|begin_of_text|>",
        eos=("<|end_of_text|>", "<|eot_id|>"),
        pad="<|finetune_right_pad_id|>",
        adds_bos=True,
        chat_template=_LLAMA3,
    ),
    "chatml": Family(
        special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        visible=("<think>", "</think>", "<tool_call>", "</tool_call>"),
        eos=("<|im_end|>", "<|endoftext|>"),
        pad="<|endoftext|>",
        chat_template=_CHATML,
    ),
    "mistral": Family(
        special=("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[TOOL_RESULTS]"),
        bos="<s>",
        eos=("</s>",),
        pad="<unk>",
        adds_bos=True,
        chat_template=_MISTRAL,
    ),
    "gemma": Family(
        special=("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
        bos="<bos>",
        eos=("<eos>", "<end_of_turn>"),
        pad="<pad>",
        adds_bos=True,
        chat_template=_GEMMA,
    ),
    "phi3": Family(
        special=("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        eos=("<|endoftext|>", "<|end|>"),
        pad="<|endoftext|>",
        chat_template=_PHI3,
    ),
    "deepseek": Family(
        special=("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>", "<｜User｜>", "<｜Assistant｜>"),
        visible=("<think>", "</think>"),
        bos="<｜begin▁of▁sentence｜>",
        eos=("<｜end▁of▁sentence｜>",),
        pad="<｜▁pad▁｜>",
        adds_bos=True,
        chat_template=_DEEPSEEK,
    ),
    "harmony": Family(
        special=(
            *("<|startoftext|>", "<|endoftext|>", "<|return|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>"),
            *("<|constrain|>", "<|call|>"),
        ),
        bos="<|startoftext|>",
        eos=("<|return|>", "<|call|>"),
        pad="<|endoftext|>",
        chat_template=_HARMONY,
    ),
    "generic": Family(
        special=("<|endoftext|>",),
        eos=("<|endoftext|>",),
        pad="<|endoftext|>",
        chat_template=_GENERIC,
    ),
}
"""The families by name; a model of no known family gets `generic`."""
