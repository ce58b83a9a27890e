"""The model families: how each is recognised, how it writes thoughts and calls, and what its template wants.

One entry per family. What a chat template itself gives away wins over the entry: fine-tunes keep a model_type and bring
markup of their own. A template that no entry fits goes by its markup alone.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Final, Literal, TypeVar

import msgspec

from mlxm.engine.formats.harmony import MARKERS as HARMONY_MARKERS
from mlxm.engine.formats.tools import REASONING, REASONING_SIGNS, TOOL_SIGNS, TOOLS, ReasoningTags

_Found = TypeVar("_Found")
_SWITCHES: Final = ("enable_thinking", "thinking")
_EFFORTS: Final = ("reasoning_effort",)
_BUDGETS: Final = ("thinking_budget",)
_NO_SYSTEM: Final = "system role not supported"
_ALTERNATES: Final = "roles must alternate"


class Quirks(msgspec.Struct, frozen=True, kw_only=True):
    """What a family's chat template wants; as far as the template's text tells, `recognise` reads it there."""

    has_system: bool = True
    """Whether it takes a message of the role system; else its text goes into the first of the user's."""
    has_tools: bool = True
    """Whether it prints the tools; else they have to be described in words."""
    has_tool_role: bool = True
    """Whether it takes the results of tools; else they are the user's words."""
    alternates: bool = False
    """Whether it refuses two messages of the same role in a row."""
    arguments: Literal["object", "string"] = "object"
    """What it takes the arguments of earlier calls as."""
    max_calls: int | None = None
    """How many calls one message may have."""
    call_id: str | None = None
    """The pattern that it wants ids of calls to follow."""
    switch: str | None = None
    """The variable that turns thinking on and off."""
    effort: str | None = None
    """The variable that says how hard to think."""
    budget: str | None = None
    """The variable that limits the tokens of thoughts."""


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a model's way of writing; `tools` are named formats, tried in this order."""

    name: str
    title: str
    reasoning: ReasoningTags | None = None
    tools: tuple[str, ...] = ("json-tags",)
    is_harmony: bool = False
    """Whether answers are messages on channels, which have thoughts and calls of their own."""
    stop_tokens: tuple[str, ...] = ()
    """Tokens that end an answer, besides those that the model's files name."""
    quirks: Quirks = Quirks()

    @property
    def markers(self) -> frozenset[str]:
        """The markup by which answers are understood."""
        if self.is_harmony:
            return frozenset(HARMONY_MARKERS)
        thoughts = () if self.reasoning is None else self.reasoning.markers
        return frozenset((*thoughts, *(marker for name in self.tools for marker in TOOLS[name].markers)))

    def kept_tokens(self, special_tokens: Iterable[str]) -> frozenset[str]:
        """Those of a tokenizer's special tokens that are markup or part of it, and must stay in an answer's text."""
        return frozenset(token for token in special_tokens if any(token in marker for marker in self.markers))


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A family, and how it is recognised: by one of the model types and by all signs in its template."""

    family: Family
    types: frozenset[str] = frozenset()
    signs: tuple[str, ...] = ()

    def fits(self, model_type: str, template: str) -> bool:
        """Whether a model is of this family."""
        return (not self.types or model_type in self.types) and all(sign in template for sign in self.signs)


DESCRIBED_FORMAT: Final = "json-tags"
"""How calls are to be written where the template knows no tools, and they are described in words."""
GENERIC: Final = Family(name="generic", title="Any other model")
_THINK: Final = REASONING["think"]
_CHATML_STOPS: Final = ("<|im_end|>", "<|endoftext|>")
_LLAMA_TYPES: Final = frozenset({"llama", "mllama", "llama4", "llama4_text"})
_MISTRAL_TYPES: Final = frozenset({"mistral", "mistral3", "ministral", "ministral3", "pixtral", "mixtral"})
_QWEN2_TYPES: Final = frozenset({"qwen", "qwen2", "qwen2_moe", "qwen2_vl", "qwen2_5_vl"})
_QWEN3_TYPES: Final = frozenset(
    {
        *("qwen3", "qwen3_moe", "qwen3_next", "qwen3_vl", "qwen3_vl_moe"),
        *("qwen3_5", "qwen3_5_moe", "qwen3_5_text", "qwen3_5_moe_text"),
    }
)
_DEEPSEEK_QUIRKS: Final = Quirks(arguments="string")
_MISTRAL_QUIRKS: Final = Quirks(alternates=True, call_id="[a-zA-Z0-9]{9}")

FAMILIES: Final[tuple[Entry, ...]] = (
    Entry(
        family=Family(
            name="gpt-oss",
            title="gpt-oss",
            tools=(),
            is_harmony=True,
            stop_tokens=("<|return|>", "<|call|>"),
            quirks=Quirks(max_calls=1, effort="reasoning_effort"),
        ),
        signs=("<|channel|>", "<|message|>", "<|start|>"),
    ),
    Entry(
        family=Family(
            name="deepseek-r1",
            title="DeepSeek R1 and its distillates",
            reasoning=_THINK,
            tools=("deepseek",),
            stop_tokens=("<｜end▁of▁sentence｜>",),
            quirks=_DEEPSEEK_QUIRKS,
        ),
        signs=("<｜Assistant｜>", "<think>"),
    ),
    Entry(
        family=Family(
            name="deepseek-v3",
            title="DeepSeek V3",
            reasoning=_THINK,
            tools=("deepseek", "deepseek-xml"),
            stop_tokens=("<｜end▁of▁sentence｜>",),
            quirks=_DEEPSEEK_QUIRKS,
        ),
        signs=("<｜Assistant｜>",),
    ),
    Entry(
        family=Family(
            name="kimi-k2",
            title="Kimi K2",
            reasoning=_THINK,
            tools=("kimi",),
            stop_tokens=("<|im_end|>",),
            quirks=Quirks(call_id=r"functions\.[\w-]+:\d+"),
        ),
        signs=("<|im_middle|>",),
    ),
    Entry(
        family=Family(
            name="qwen3-coder",
            title="Qwen3-Coder and Qwen3.5",
            reasoning=_THINK,
            tools=("qwen-xml", "json-tags"),
            stop_tokens=_CHATML_STOPS,
        ),
        signs=("<|im_start|>", "<function=", "<parameter="),
    ),
    Entry(
        family=Family(
            name="qwen3", title="Qwen3", reasoning=_THINK, tools=("json-tags", "qwen-xml"), stop_tokens=_CHATML_STOPS
        ),
        types=_QWEN3_TYPES,
    ),
    Entry(
        family=Family(name="qwen2", title="Qwen 2, 2.5 and QwQ", stop_tokens=_CHATML_STOPS),
        types=_QWEN2_TYPES,
    ),
    Entry(
        family=Family(name="hermes", title="Hermes", stop_tokens=("<|im_end|>", "<|eot_id|>")),
        types=_LLAMA_TYPES | _MISTRAL_TYPES,
        signs=("<|im_start|>", "<tool_call>"),
    ),
    Entry(
        family=Family(
            name="functionary",
            title="Functionary v3.1",
            tools=("functionary",),
            stop_tokens=("<|eot_id|>", "<|eom_id|>"),
            quirks=Quirks(arguments="string"),
        ),
        types=_LLAMA_TYPES,
        signs=("<function", "</function>", "<|start_header_id|>"),
    ),
    Entry(
        family=Family(
            name="firefunction",
            title="FireFunction",
            tools=("functools",),
            stop_tokens=("<|eot_id|>",),
            quirks=Quirks(has_tools=False, arguments="string"),
        ),
        signs=("functools", "<|start_header_id|>"),
    ),
    Entry(
        family=Family(
            name="llama-3",
            title="Llama 3",
            tools=("llama-json", "python-list"),
            stop_tokens=("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"),
            quirks=Quirks(max_calls=1),
        ),
        types=_LLAMA_TYPES,
        signs=("<|start_header_id|>",),
    ),
    Entry(
        family=Family(
            name="llama-2",
            title="Llama 2 and CodeLlama",
            stop_tokens=("</s>",),
            quirks=Quirks(has_tools=False, has_tool_role=False, alternates=True),
        ),
        types=_LLAMA_TYPES,
        signs=("[INST]",),
    ),
    Entry(
        family=Family(
            name="mistral",
            title="Mistral, Mixtral and Devstral",
            tools=("mistral-args", "mistral-list"),
            stop_tokens=("</s>",),
            quirks=_MISTRAL_QUIRKS,
        ),
        types=_MISTRAL_TYPES,
    ),
    Entry(
        family=Family(
            name="gemma",
            title="Gemma 1 to 3",
            tools=("json-tags", "python-fence"),
            stop_tokens=("<end_of_turn>", "<eos>"),
            quirks=Quirks(has_system=False, has_tools=False, has_tool_role=False, alternates=True),
        ),
        types=frozenset({"gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n", "gemma3n_text"}),
    ),
    Entry(
        family=Family(
            name="gemma-4",
            title="Gemma 4",
            reasoning=REASONING["gemma-channel"],
            tools=("gemma-calls",),
            stop_tokens=("<turn|>", "<eos>"),
        ),
        types=frozenset({"gemma4", "gemma4_text"}),
    ),
    Entry(
        family=Family(
            name="glm-4.5",
            title="GLM 4.5 and later",
            reasoning=_THINK,
            tools=("glm-xml", "json-tags"),
            stop_tokens=("<|user|>", "<|observation|>", "<|endoftext|>"),
            quirks=Quirks(switch="enable_thinking"),
        ),
        signs=("<arg_key>", "<|observation|>"),
    ),
    Entry(
        family=Family(
            name="glm-4",
            title="GLM 4",
            tools=("glm-plain",),
            stop_tokens=("<|user|>", "<|observation|>", "<|endoftext|>"),
            quirks=Quirks(max_calls=1),
        ),
        types=frozenset({"glm", "glm4", "chatglm", "glm4v"}),
    ),
    Entry(
        family=Family(
            name="phi",
            title="Phi 3 and 4",
            tools=("phi-list", "functools"),
            stop_tokens=("<|end|>", "<|endoftext|>", "<|im_end|>"),
            quirks=Quirks(has_tools=False, has_tool_role=False),
        ),
        types=frozenset({"phi", "phi3", "phi3small", "phimoe", "phi4mm", "phi3_v"}),
    ),
    Entry(
        family=Family(
            name="granite",
            title="Granite",
            reasoning=REASONING["think-response"],
            tools=("granite-list", "json-tags"),
            stop_tokens=("<|end_of_text|>",),
        ),
        types=frozenset({"granite", "granitemoe", "granitemoehybrid"}),
    ),
    Entry(
        family=Family(
            name="command-r",
            title="Command R",
            tools=("cohere-action", "cohere-fence"),
            stop_tokens=("<|END_OF_TURN_TOKEN|>",),
        ),
        types=frozenset({"cohere", "cohere2", "cohere2_moe"}),
    ),
    Entry(
        family=Family(
            name="minimax", title="MiniMax M2", reasoning=_THINK, tools=("minimax-xml",), stop_tokens=("[e~[",)
        ),
        signs=("<minimax:tool_call>",),
    ),
    Entry(
        family=Family(
            name="seed-oss",
            title="Seed-OSS",
            reasoning=REASONING["seed"],
            tools=("seed-xml",),
            stop_tokens=("<seed:eos>",),
            quirks=Quirks(budget="thinking_budget"),
        ),
        types=frozenset({"seed_oss"}),
    ),
    Entry(
        family=Family(name="lfm2", title="LFM2", tools=("python-tags",), stop_tokens=("<|im_end|>",)),
        types=frozenset({"lfm2", "lfm2_moe", "lfm2_vl"}),
    ),
)


def recognise(model_type: str | None, template: str | None, added_tokens: Collection[str] = ()) -> Family:
    """The family of a model by its config's model_type, its chat template's text and its tokenizer's added tokens."""
    text = template or ""
    family = _find(model_type or "", text)
    if family.is_harmony or template is None:
        return family
    thoughts = _signed_by(text, REASONING_SIGNS) or _signed_by("\n".join(added_tokens), REASONING_SIGNS)
    quirks = _read_quirks(family.quirks, text)
    described = () if quirks.has_tools else (DESCRIBED_FORMAT,)
    tools = (*described, *(_signed_by(text, TOOL_SIGNS) or ()), *family.tools)
    return msgspec.structs.replace(
        family,
        reasoning=family.reasoning if thoughts is None else REASONING[thoughts],
        tools=tuple(dict.fromkeys(tools)),
        quirks=quirks,
    )


def _find(model_type: str, template: str) -> Family:
    return next((entry.family for entry in FAMILIES if entry.fits(model_type, template)), GENERIC)


def _signed_by(text: str, signs: Iterable[tuple[tuple[str, ...], _Found]]) -> _Found | None:
    return next((found for needed, found in signs if all(sign in text for sign in needed)), None)


def _read_quirks(quirks: Quirks, template: str) -> Quirks:
    """The quirks with what the template's text says about them."""
    return msgspec.structs.replace(
        quirks,
        has_system=quirks.has_system and _NO_SYSTEM not in template.lower(),
        has_tools=_reads(template, "tools") or _reads(template, "available_tools"),
        alternates=_ALTERNATES in template,
        switch=_first_read(template, _SWITCHES),
        effort=_first_read(template, _EFFORTS),
        budget=_first_read(template, _BUDGETS),
    )


def _first_read(template: str, names: Iterable[str]) -> str | None:
    return next((name for name in names if _reads(template, name)), None)


def _reads(template: str, name: str) -> bool:
    """Whether a template reads a variable: its name stands in a block, and is no attribute and no key."""
    blocks = re.findall(r"\{[{%].*?[%}]\}", template, re.DOTALL)
    return any(re.search(rf"(?<![\w.'\"]){name}(?![\w'\"])", block) for block in blocks)
