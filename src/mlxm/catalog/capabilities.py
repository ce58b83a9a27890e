"""Whether a model takes tools and whether it thinks aloud: tags decide, then the family, then its chat template.

The tier that answered is kept. "no" needs a reason of its own; where nothing speaks, the answer is "unknown".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from mlxm.catalog.kinds import Kind

Answer = Literal["yes", "no", "unknown"]
Tier = Literal["tags", "family", "config", "template"]


class Capability(msgspec.Struct, frozen=True):
    """Whether a model can do something, the tier that decided (None while unknown) and what it saw."""

    answer: Answer = "unknown"
    tier: Tier | None = None
    reason: str = "nothing says so"


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What there is to judge by; `template` None means that it is not known, "" that there is none."""

    kind: Kind
    family: str
    name: str = ""
    tags: Sequence[str] = ()
    tokenizer_config: Mapping[str, Any] = {}
    template: str | None = None


_WRITING: Final = ("text", "vision", "unknown")
_TEMPLATE_CHARACTERS: Final = 1 << 20
"""No template is longer than this, and a longer one is not searched further."""

_TOOL_TAGS: Final = frozenset(
    {
        *("tool-use", "tool_use", "tools", "tool-calling", "tool_calling", "tool calling", "function-calling"),
        *("function_calling", "function calling", "function-call", "agentic tool use"),
    }
)
_THOUGHT_TAGS: Final = frozenset({"reasoning", "thinking", "chain-of-thought", "cot"})

_TOOL_FAMILIES: Final = {
    family: re.compile(pattern, re.IGNORECASE)
    for family, pattern in (
        *((family, "") for family in ("qwen3", "gpt-oss", "llama4", "gemma4", "minimax", "seed", "longcat")),
        ("glm4", r"glm[-_]?[45]"),
        ("kimi", r"k2|k3|linear"),
        ("qwen2", r"qwen2\.5-(?!vl|math|omni).*instruct|qwq"),
        ("llama", r"llama-?3[._][123]-.*instruct|hermes-[23]|firefunction|functionary|tool-use"),
        ("mistral", r"mistral-(small|nemo|large|medium)|mistral-7b-instruct-v0\.3|devstral|ministral|magistral"),
        ("mixtral", r"8x22b-instruct"),
        ("granite", r"granite-?[34]"),
        ("cohere", r"command-[ar]"),
        ("deepseek", r"deepseek-v3|r1-0528|v2\.5"),
        ("smollm", r"smollm3"),
        ("lfm2", r"lfm2(?!.*vl)"),
        ("phi", r"phi-4-mini"),
        ("exaone", r"exaone-?4"),
        ("jamba", r"jamba-1\.[5-9]"),
        ("olmo", r"olmo-?3.*(instruct|think)"),
    )
}
_BASE: Final = re.compile(r"(?<![a-z])(base|pt|pretrain(ed)?)(?![a-z])", re.IGNORECASE)
_THINKING_FAMILIES: Final = {"gpt-oss": "its family always thinks first"}
_THINKING_NAMES: Final = re.compile(
    r"qwq|(?<![a-z0-9])r1(?![a-z0-9])|thinking|reasoner|reasoning|magistral|deepscaler|open-?thinker|(?<![a-z])think(?![a-z])",
    re.IGNORECASE,
)
_SILENT_NAMES: Final = re.compile(r"instruct-2507|qwen3-coder|qwen3-next-\d+b-a\d+b-instruct", re.IGNORECASE)
"""Published beside a thinking twin, as the one that does not."""

_TAKES_TOOLS: Final = re.compile(r"\{[{%][^{}%]*\btools\b")
_THOUGHT_MARKS: Final = re.compile(
    r"enable_thinking|reasoning_content|reasoning_effort|</?think>|\[/?THINK\]|</?seed:think>|\{%[^{}%]*\bthinking\b"
)


def tool_use_of(evidence: Evidence) -> Capability:
    """Whether the model was trained to call tools."""
    if evidence.kind not in _WRITING:
        return Capability("no", "config", f"its kind is {evidence.kind}, which calls nothing")
    return _tagged(evidence, _TOOL_TAGS) or _tools_by_family(evidence) or _tools_by_files(evidence)


def reasoning_of(evidence: Evidence) -> Capability:
    """Whether the model writes down its thoughts before its answer."""
    if evidence.kind not in _WRITING:
        return Capability("no", "config", f"its kind is {evidence.kind}, which writes nothing")
    return _tagged(evidence, _THOUGHT_TAGS) or _thoughts_by_family(evidence) or _thoughts_by_template(evidence)


def _tagged(evidence: Evidence, known: frozenset[str]) -> Capability | None:
    found = sorted(known.intersection(tag.lower() for tag in evidence.tags))
    return Capability("yes", "tags", f"tagged {found[0]}") if found else None


def _tools_by_family(evidence: Evidence) -> Capability | None:
    pattern = _TOOL_FAMILIES.get(evidence.family)
    if pattern is None or not pattern.search(evidence.name) or _BASE.search(evidence.name):
        return None
    return Capability("yes", "family", f"{evidence.family} models of this name are trained to call tools")


def _tools_by_files(evidence: Evidence) -> Capability:
    parser = evidence.tokenizer_config.get("tool_parser_type")
    if isinstance(parser, str) and parser:
        return Capability("yes", "config", f"tokenizer_config.json has tool_parser_type {parser}")
    if evidence.template is None:
        return Capability()
    if not evidence.template:
        return Capability(reason="it has no chat template")
    if _TAKES_TOOLS.search(evidence.template[:_TEMPLATE_CHARACTERS]):
        return Capability("yes", "template", "its chat template takes tools")
    return Capability("no", "template", "its chat template takes no tools")


def _thoughts_by_family(evidence: Evidence) -> Capability | None:
    if evidence.family in _THINKING_FAMILIES:
        return Capability("yes", "family", _THINKING_FAMILIES[evidence.family])
    if _SILENT_NAMES.search(evidence.name):
        return Capability("no", "family", "models of this name answer without thinking first")
    if _THINKING_NAMES.search(evidence.name):
        return Capability("yes", "family", "models of this name think first")
    return None


def _thoughts_by_template(evidence: Evidence) -> Capability:
    if evidence.template is None:
        return Capability()
    if not evidence.template:
        return Capability(reason="it has no chat template")
    found = _THOUGHT_MARKS.search(evidence.template[:_TEMPLATE_CHARACTERS])
    if found is None:
        return Capability("no", "template", "its chat template has no place for thoughts")
    return Capability("yes", "template", f"its chat template has {found[0].rpartition(' ')[2]}")
