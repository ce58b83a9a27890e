"""From a neutral conversation to the turns that a chat template takes, with nothing left out.

What it has no place for is put where the model will read it: the system's words before the user's, calls and results
in words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import groupby, pairwise
from typing import Any, Final

from mlxm.engine.formats.families import Family
from mlxm.prep.customs import CallCustoms, Customs, Turn
from mlxm.prep.described import describe_tools, write_calls, write_results
from mlxm.types import Message, ReasoningPart, TextPart, ToolCallPart

_SYSTEM: Final = ("system", "developer")
_SHORT_ID: Final = "[a-zA-Z0-9]{9}"
_SHORT_ID_LENGTH: Final = 9


class Converter:
    """Makes turns for one template; calls are written in the family's way where the template takes none."""

    def __init__(self, customs: Customs, family: Family) -> None:
        self._customs = customs
        self._family = family

    def turns(self, messages: Sequence[Message], tools: Sequence[Turn]) -> list[Turn]:
        """The turns of a conversation, with the tools in words if the template does not tell of them."""
        first = next((n for n, message in enumerate(messages) if message.role not in _SYSTEM), len(messages))
        described = describe_tools(tools) if tools and not self._customs.prints_tools else None
        calls = _Calls(messages, self._customs, self._family)
        later = [turn for message in messages[first:] for turn in self._turns(message, calls)]
        turns = self._fold(self._leading(messages[:first], described), later)
        return [turn for is_result, run in groupby(turns, _is_result) for turn in (_join(run) if is_result else run)]

    def _leading(self, messages: Sequence[Message], described: str | None) -> list[Turn]:
        """The system's turns at the beginning: one, unless the template prints several."""
        turns = [self._said(message, self._system_role(message)) for message in messages]
        if described is not None:
            turns.append({"role": "system", "content": described})
        if len(turns) > 1 and (described is not None or not self._customs.takes_systems):
            return [{**turns[0], "content": _paragraphs(*(turn["content"] for turn in turns))}]
        return turns

    def _fold(self, leading: list[Turn], later: list[Turn]) -> list[Turn]:
        """All turns, the system's words in the user's if the template takes none of the system."""
        if not leading or leading[0]["role"] == "developer":
            return [*leading, *later]
        if self._takes_system(later):
            return [*leading, *later]
        place = _last_users(later) if self._customs.takes_system else 0
        words = _paragraphs(*(turn["content"] for turn in leading))
        if not later or not _is_user(later[place]):
            return [{"role": "user", "content": words}, *later]
        told = {**later[place], "content": _paragraphs(words, later[place]["content"])}
        return [*later[:place], told, *later[place + 1 :]]

    def _takes_system(self, later: Sequence[Turn]) -> bool:
        """Whether the template prints the system's words before these turns."""
        if not later:
            return self._customs.takes_lone_system
        has_users_word = _last_users(later) == len(later) - 1
        return self._customs.takes_system and (has_users_word or self._customs.keeps_system)

    def _turns(self, message: Message, calls: _Calls) -> list[Turn]:
        match message.role:
            case "assistant":
                return self._assistant(message, calls)
            case "tool":
                return [calls.result(message, _result_text(message))]
            case "system" | "developer" if self._customs.takes_late_systems:
                return [self._said(message, self._system_role(message))]
            case _:
                return [self._said(message, "user")]

    def _assistant(self, message: Message, calls: _Calls) -> list[Turn]:
        turn = self._said(message, "assistant")
        thoughts = "".join(part.text for part in message.content if isinstance(part, ReasoningPart))
        if thoughts and self._customs.thoughts_key is not None:
            turn[self._customs.thoughts_key] = thoughts
        made = [part for part in message.content if isinstance(part, ToolCallPart)]
        return calls.turns(turn, made) if made else [turn]

    def _said(self, message: Message, role: str) -> Turn:
        turn: Turn = {"role": role, "content": text_of(message)}
        if message.name is not None:
            turn["name"] = message.name
        return turn

    def _system_role(self, message: Message) -> str:
        is_known = message.role != "developer" or self._customs.takes_developer
        return message.role if is_known else "system"


class _Calls:
    """The calls of a conversation and their results, each with the id that the template wants."""

    def __init__(self, messages: Sequence[Message], customs: Customs, family: Family) -> None:
        self._customs = customs
        self._family = family
        self._seen: dict[str, tuple[str, str]] = {}
        """The name, and the id as the template wants it, by the id as it was given."""
        has_any = any(_is_about_tools(message) for message in messages)
        self._taken = customs.calls if has_any and customs.prints_tools else None

    def turns(self, turn: Turn, made: Sequence[ToolCallPart]) -> list[Turn]:
        """The turns that make these calls, after what `turn` says."""
        taken = self._taken
        if taken is None:
            return [{**turn, "content": _lines(turn["content"], self._write(made))}]
        calls = [self._call(call, place, taken) for place, call in enumerate(made)]
        turns = [{**turn, "tool_calls": calls}]
        if len(calls) > 1 and not self._customs.takes_several_calls:
            turns = [{**turn, "tool_calls": calls[:1]}]
            turns += [{"role": "assistant", "content": taken.silence, "tool_calls": [call]} for call in calls[1:]]
        if not turn["content"]:
            turns[0]["content"] = taken.silence
        elif not self._customs.keeps_words_with_calls and self._customs.takes_words_before_calls:
            turns[:1] = [turn, {"role": "assistant", "content": taken.silence, "tool_calls": turns[0]["tool_calls"]}]
        return turns

    def result(self, message: Message, text: str) -> Turn:
        """The turn of a tool's result: the tool's, or the user's where there are no others."""
        if not (self._customs.prints_tools and self._customs.takes_results):
            return {"role": "user", "content": write_results([text]), _RESULT: True}
        given = "" if message.tool_call_id is None else message.tool_call_id
        name, call_id = self._seen.get(given) or ("", self._fit(given, "", 0))
        turn: Turn = {"role": "tool", "content": text, "tool_call_id": call_id}
        name = name if message.name is None else message.name
        return {**turn, "name": name} if name else turn

    def _write(self, made: Sequence[ToolCallPart]) -> str:
        return write_calls(made, self._family if self._customs.prints_tools else None)

    def _call(self, call: ToolCallPart, place: int, taken: CallCustoms) -> Turn:
        call_id = self._fit(call.id, call.name, place)
        self._seen[call.id] = call.name, call_id
        arguments = _object(call.arguments) if taken.arguments == "object" else call.arguments.strip() or "{}"
        return {"id": call_id, "type": "function", "function": {"name": call.name, "arguments": arguments}}

    def _fit(self, call_id: str, name: str, place: int) -> str:
        """The call's own id if the template takes such ids, else one that is made of it."""
        pattern = self._family.quirks.call_id
        if pattern is None:
            pattern = _SHORT_ID if self._taken is not None and self._taken.has_short_ids else ".*"
        short = blake2b(call_id.encode()).hexdigest()[:_SHORT_ID_LENGTH]
        choices = (call_id, short, f"functions.{name}:{place}")
        return next((choice for choice in choices if re.fullmatch(pattern, choice, re.DOTALL)), call_id)


_RESULT: Final = "result"
"""Marks a user's turn that is a tool's result, until it is joined with its neighbours."""


def text_of(message: Message) -> str:
    """What is said in a message."""
    return "".join(part.text for part in message.content if isinstance(part, TextPart))


def interleaved(turns: Sequence[Turn]) -> list[Turn]:
    """The same with each result behind its call, where calls of one message had to become several turns."""
    ordered: list[Turn] = []
    for is_tools, group in groupby(turns, lambda turn: turn["role"] == "tool" or "tool_calls" in turn):
        run = list(group)
        ordered += _paired(run) if is_tools else run
    return ordered


def merged(turns: Sequence[Turn]) -> list[Turn]:
    """The same with one turn for what one role says in a row."""
    ordered: list[Turn] = []
    for turn in turns:
        last = ordered[-1] if ordered else None
        if last is None or last["role"] != turn["role"] or turn["role"] == "tool" or {"tool_calls"} & {*last, *turn}:
            ordered.append(turn)
        else:
            ordered[-1] = {**last, **turn, "content": _paragraphs(last["content"], turn["content"])}
    return ordered


def filled(turns: Sequence[Turn]) -> list[Turn]:
    """The same with a silent turn where one is missed: the user's before an answer, the assistant's after a result."""
    start = next((n for n, turn in enumerate(turns) if turn["role"] not in _SYSTEM), len(turns))
    ordered = list(turns[:start])
    if start < len(turns) and turns[start]["role"] == "assistant":
        ordered.append({"role": "user", "content": ""})
    for turn, after in pairwise((*turns[start:], None)):
        if turn is not None:
            ordered.append(turn)
            if after is not None and turn["role"] == "tool" and after["role"] == "user":
                ordered.append({"role": "assistant", "content": ""})
    return ordered


def thought_aloud(turns: Sequence[Turn], key: str | None) -> list[Turn]:
    """The same with what is said before a call among the thoughts, for templates that take only one of them."""
    if key is None:
        return list(turns)
    return [
        {**turn, key: _paragraphs(turn[key], turn["content"]), "content": ""}
        if key in turn and "tool_calls" in turn and turn["content"]
        else turn
        for turn in turns
    ]


def _paired(turns: list[Turn]) -> list[Turn]:
    results = [turn for turn in turns if turn["role"] == "tool"]
    ordered: list[Turn] = []
    for turn in turns:
        if turn["role"] == "tool":
            continue
        ordered.append(turn)
        ids = {call["id"] for call in turn["tool_calls"]}
        ordered += (result for result in results if result["tool_call_id"] in ids)
        results = [result for result in results if result["tool_call_id"] not in ids]
    return ordered + results


def _join(results: Iterator[Turn]) -> list[Turn]:
    return [{"role": "user", "content": "\n".join(turn["content"] for turn in results)}]


def _is_result(turn: Turn) -> bool:
    return _RESULT in turn


def _last_users(turns: Sequence[Turn]) -> int:
    return max((place for place, turn in enumerate(turns) if _is_user(turn)), default=0)


def _is_user(turn: Turn) -> bool:
    return turn["role"] == "user" and _RESULT not in turn


def _is_about_tools(message: Message) -> bool:
    return message.role == "tool" or any(isinstance(part, ToolCallPart) for part in message.content)


def _result_text(message: Message) -> str:
    text = text_of(message)
    return f"Error: {text}" if message.is_error and not text.lower().startswith("error") else text


def _object(arguments: str) -> Any:
    """The arguments as an object; what is none stays as it was written."""
    try:
        return json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments


def _paragraphs(*texts: str) -> str:
    return "\n\n".join(filter(None, texts))


def _lines(*texts: str) -> str:
    return "\n".join(filter(None, texts))
