"""Grammars for what a family has to write when calls are required, tools are strict, or the answer has a form.

Thoughts stay free: where the prompt has opened them, the grammar holds from the tag that closes them on; where the
model may open them itself, they are part of the grammar.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from mlxm.engine.formats.families import Family
from mlxm.engine.formats.harmony import MARKERS
from mlxm.engine.formats.lark import Rules, arguments_of
from mlxm.engine.formats.parser import opens_thoughts
from mlxm.engine.formats.tools import TOOLS, ReasoningTags
from mlxm.types import Grammar, Tool, ToolChoice

_SLASH: Final = re.compile(r"(\\.)|/", re.DOTALL)
"""A slash that is not escaped, or anything that is."""
_WORDS: Final = "/(?s:.*)/"
_NO_BRACKET: Final = r"/([^\[{](?s:.*))?/"
_START, _CHANNEL, _CONSTRAIN, _MESSAGE, _END, *_ = MARKERS
_COMPACT: Final = {"x-guidance": {"whitespace_flexible": False, "lenient": False}}
_NO_CALLS: Final = ToolChoice(mode="none")
_NONE: Final[Mapping[str, int]] = {}


def tool_grammar(
    family: Family,
    tools: Sequence[Tool],
    choice: ToolChoice,
    *,
    ending: str = "",
    special_ids: Mapping[str, int] = _NONE,
) -> Grammar | None:
    """What makes the model call as `choice` demands, and strict tools right; None when nothing has to be made sure.

    `special_ids` are the ids of the family's kept tokens, which the model's tokenizer has as special ones.
    """
    offered = [tool for tool in tools if choice.mode != "named" or tool.name == choice.name]
    if choice.mode == "none" or not offered or (choice.mode == "auto" and not any(tool.is_strict for tool in offered)):
        return None
    rules = Rules(special_ids)
    if choice.mode != "auto":
        return _guided(family, rules, _calls(family, rules, offered, choice), ending)
    return _guided(family, rules, _words_and_calls(family, rules, offered, choice), ending)


def answer_grammar(
    family: Family,
    grammar: Grammar,
    *,
    ending: str = "",
    special_ids: Mapping[str, int] = _NONE,
    tools: Sequence[Tool] = (),
    choice: ToolChoice = _NO_CALLS,
) -> Grammar:
    """The request's own grammar for the answer, with room for thoughts before it, and for calls in its place."""
    takes_calls = bool(tools) and choice.mode == "auto"
    thinks = family.reasoning is not None and not _is_closed(family.reasoning, ending)
    if not (takes_calls or thinks or family.is_harmony):
        return grammar
    if not takes_calls and family.reasoning is not None and opens_thoughts(family.reasoning, ending):
        return msgspec.structs.replace(grammar, after=family.reasoning.close)
    rules = Rules(special_ids)
    answer = rules.rule(_embedded(grammar))
    if family.is_harmony:
        answer = f"{_final(rules)} {answer}"
    options = [answer, _calls(family, rules, tools, choice)] if takes_calls else [answer]
    return _guided(family, rules, rules.one_of(options), ending)


def _embedded(grammar: Grammar) -> str:
    """A grammar as part of another."""
    match grammar.kind:
        case "json_schema":
            schema = json.loads(grammar.source)
            return "%json " + json.dumps((schema if isinstance(schema, dict) else {}) | _COMPACT)
        case "json_object":
            return "%json " + json.dumps({"type": "object"} | _COMPACT)
        case "regex":
            escaped = _SLASH.sub(lambda found: found[1] or r"\/", grammar.source)
            return "/" + escaped.replace("\n", r"\n") + "/"
        case "choice":
            return " | ".join(json.dumps(text, ensure_ascii=False) for text in json.loads(grammar.source))
        case "lark":
            return f"%lark {{\n{grammar.source}\n}}"


def _guided(family: Family, rules: Rules, body: str, ending: str) -> Grammar:
    """The grammar of `body` behind the thoughts that a family has."""
    if family.is_harmony:
        between = rules.text(_START + "assistant")
        channel = rules.one_of(map(rules.text, ("analysis", "commentary")))
        thought = f"{rules.text(_CHANNEL)} {channel} {rules.text(_MESSAGE)} {rules.until(_END)} {between}"
        return Grammar(kind="lark", source=rules.source(f"({rules.rule(thought)})* {body}"))
    tags = family.reasoning
    if tags is None or _is_closed(tags, ending):
        return Grammar(kind="lark", source=rules.source(body))
    if opens_thoughts(tags, ending):
        return Grammar(kind="lark", source=rules.source(f"{_pause(tags, rules)} {body}"), after=tags.close)
    thought = rules.rule(f"{rules.text(tags.open)} {rules.until(tags.close)} {_pause(tags, rules)}")
    return Grammar(kind="lark", source=rules.source(f"({thought})? {body}"))


def _pause(tags: ReasoningTags, rules: Rules) -> str:
    """What may stand between thoughts and answer: all of what the template prints there, or nothing, is not answer."""
    return f"({rules.text(tags.after_close)})?" if tags.after_close else ""


def _is_closed(tags: ReasoningTags, ending: str) -> bool:
    """Whether the prompt has switched the thoughts off by opening and closing them itself."""
    return ending.rstrip().endswith(tags.close)


def _calls(family: Family, rules: Rules, tools: Sequence[Tool], choice: ToolChoice) -> str:
    """Nothing but calls."""
    if family.is_harmony:
        return rules.one_of(_harmony_call(rules, tool) for tool in tools)
    written = TOOLS[family.tools[0]].write(rules, tools, several=choice.allows_several)
    return f"{rules.text(written.opener)} {written.rest}"


def _harmony_call(rules: Rules, tool: Tool) -> str:
    head = f"{_CHANNEL}commentary to=functions.{tool.name} {_CONSTRAIN}json{_MESSAGE}"
    return f"{rules.text(head)} {arguments_of(tool, rules)}"


def _words_and_calls(family: Family, rules: Rules, tools: Sequence[Tool], choice: ToolChoice) -> str:
    """Words, and calls among them that have to be right."""
    if family.is_harmony:
        return rules.one_of((_calls(family, rules, tools, choice), f"{_final(rules)} {_WORDS}"))
    written = TOOLS[family.tools[0]].write(rules, tools, several=choice.allows_several)
    if not written.opener:
        return rules.one_of((written.rest, _NO_BRACKET))
    times = "*" if choice.allows_several else "?"
    return f"({rules.until(written.opener)} {written.rest}){times} {_WORDS}"


def _final(rules: Rules) -> str:
    return rules.text(f"{_CHANNEL}final{_MESSAGE}")
