"""What a chat template wants: found out by having it print a few words and looking for them in the text.

Its words about itself are no help, because templates are changed by everyone who publishes a model. Each question is
asked when a conversation first needs the answer: most conversations need one only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import cached_property
from itertools import product
from typing import Any, Final, Literal

import msgspec

from mlxm.errors import InvalidRequest
from mlxm.prep.template import ChatTemplate

Turn = dict[str, Any]
"""A message as templates take it; the content is text until it is printed."""

_ONE, _TWO, _THREE, _FOUR, _FIVE = "probe7f3a", "probe9c1e", "probe2d8b", "probe5a60", "probee6b4"
_KEY: Final = "key4e17"
_LONG_ID, _SHORT_ID = "call_0123456789abcdef", "a1b2c3d4e"
_THOUGHTS: Final = ("reasoning_content", "thinking", "reasoning")


class CallCustoms(msgspec.Struct, frozen=True, kw_only=True):
    """How a template takes calls of tools; `silence` is the content of a message that does nothing else."""

    arguments: Literal["object", "string"]
    silence: str | None
    has_short_ids: bool

    def turn(self, *names: str, text: str | None = None) -> Turn:
        """A message that calls tools, to try it out."""
        values = {_KEY: _FOUR}
        arguments = values if self.arguments == "object" else json.dumps(values)
        calls = [
            {"id": self.call_id(n), "type": "function", "function": {"name": name, "arguments": arguments}}
            for n, name in enumerate(names)
        ]
        return {"role": "assistant", "content": self.silence if text is None else text, "tool_calls": calls}

    def call_id(self, number: int) -> str:
        """An id for trying things out."""
        return f"{_SHORT_ID if self.has_short_ids else _LONG_ID}"[:-1] + str(number)


class Customs:
    """What one template wants."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template

    def print(self, turns: Sequence[Turn], tools: Sequence[Turn] = (), **variables: object) -> str:
        """What the template makes of turns, tools and variables; raises InvalidRequest."""
        no_tools, wants_parts = self._bare
        return self._print(turns, list(tools) or no_tools, wants_parts=wants_parts, **variables)

    @cached_property
    def takes_system(self) -> bool:
        """Whether it prints the words of the system, at the beginning."""
        return self._takes_first("system")

    @cached_property
    def takes_developer(self) -> bool:
        """Whether it tells developers from the system, and prints their words."""
        return "developer" in self._template.words and self._takes_first("developer")

    @cached_property
    def takes_lone_system(self) -> bool:
        """Whether it prints them where nobody else says anything."""
        return self._shows([_say("system", _ONE)], _ONE)

    @cached_property
    def keeps_system(self) -> bool:
        """Whether it prints them as well where the user does not have the last word."""
        return self._shows([_say("system", _ONE), _say("user", _TWO), _say("assistant", _THREE)], _ONE)

    @cached_property
    def takes_systems(self) -> bool:
        """Whether it prints several of them, at the beginning."""
        return self._shows([_say("system", _ONE), _say("system", _TWO), _say("user", _THREE)], _ONE, _TWO, _THREE)

    @cached_property
    def takes_late_systems(self) -> bool:
        """Whether it prints them in the middle of a conversation, without forgetting the others."""
        turns = [_say("system", _ONE), _say("user", _TWO), _say("assistant", _THREE), _say("system", _FOUR)]
        return self._shows([*turns, _say("user", _TWO)], _ONE, _FOUR)

    @cached_property
    def prints_names(self) -> bool:
        """Whether it prints the names of those who speak."""
        return self._shows([{**_say("user", _ONE), "name": _TWO}], _ONE, _TWO)

    @cached_property
    def prints_tools(self) -> bool:
        """Whether it tells the model of the tools."""
        schema = {"type": "object", "properties": {_KEY: {"type": "string", "description": ""}}, "required": [_KEY]}
        tool = {"type": "function", "function": {"name": _TWO, "description": _THREE, "parameters": schema}}
        return self._shows([_say("user", _ONE)], _ONE, _TWO, tools=[tool])

    @cached_property
    def calls(self) -> CallCustoms | None:
        """How it takes calls; None where it leaves them out."""
        return next(filter(self._takes_calls, _ways_to_call()), None)

    @cached_property
    def takes_several_calls(self) -> bool:
        """Whether a message may have more than one."""
        turns = [_say("user", _ONE), self._call(_TWO, _THREE), *map(self._result, range(2))]
        return self._shows(turns, _TWO, _THREE)

    @cached_property
    def keeps_words_with_calls(self) -> bool:
        """Whether it prints what is said in the message that calls."""
        return self._shows([_say("user", _ONE), self._call(_TWO, text=_THREE), self._result(0)], _TWO, _THREE)

    @cached_property
    def takes_words_before_calls(self) -> bool:
        """Whether a message may go before the one that calls."""
        turns = [_say("user", _ONE), _say("assistant", _THREE), self._call(_TWO), self._result(0)]
        return self._shows([*turns, _say("assistant", _ONE), _say("user", _ONE)], _TWO, _THREE)

    @cached_property
    def takes_results(self) -> bool:
        """Whether it prints what a tool returned."""
        return self._shows([_say("user", _ONE), self._call(_TWO), self._result(0)], _FIVE)

    @cached_property
    def thoughts_key(self) -> str | None:
        """Under which name it takes the thoughts of earlier messages; None where it leaves them out."""
        return next((name for name in _THOUGHTS if name in self._template.words), None)

    @cached_property
    def _bare(self) -> tuple[list[Turn] | None, bool]:
        """What stands for no tools, and whether it prints parts of a content only, and nothing of a plain text."""
        for wants_parts, no_tools in product((False, True), (None, list[Turn]())):
            try:
                text = self._print([_say("user", _ONE)], no_tools, wants_parts=wants_parts)
            except InvalidRequest:
                continue
            if _ONE in text:
                return no_tools, wants_parts
        return None, False

    def _print(self, turns: Sequence[Turn], tools: list[Turn] | None, *, wants_parts: bool, **variables: object) -> str:
        said = [_in_parts(turn) for turn in turns] if wants_parts else turns
        return self._template.print(said, tools=tools, **{**self._functions(tools), **variables})

    def _functions(self, tools: list[Turn] | None) -> dict[str, object]:
        """What the templates read that take functions as a text instead of tools."""
        if "functions" not in self._template.source or self._template.options.isdisjoint({"functions"}):
            return {}
        functions = [tool["function"] for tool in tools or ()]
        now = datetime.now().astimezone().strftime("%B %d %Y %H:%M:%S")
        return {"functions": json.dumps(functions, ensure_ascii=False, indent=4), "datetime": now}

    def _takes_calls(self, calls: CallCustoms) -> bool:
        try:
            text = self.print([_say("user", _ONE), calls.turn(_TWO), _return(calls.call_id(0))])
        except InvalidRequest:
            return False
        spoiled = (f"{{'{_KEY}'", f'\\"{_KEY}', "None")  # an object printed by Python, a text inside a text, no text
        return _TWO in text and _FOUR in text and not any(sign in text for sign in spoiled)

    def _takes_first(self, role: str) -> bool:
        return self._shows([_say(role, _ONE), _say("user", _TWO)], _ONE, _TWO)

    def _call(self, *names: str, text: str | None = None) -> Turn:
        return _say("assistant", _TWO) if self.calls is None else self.calls.turn(*names, text=text)

    def _result(self, number: int) -> Turn:
        return _return(_LONG_ID if self.calls is None else self.calls.call_id(number))

    def _shows(self, turns: Sequence[Turn], *words: str, tools: Sequence[Turn] = ()) -> bool:
        try:
            text = self.print(turns, tools)
        except InvalidRequest:
            return False
        return all(word in text for word in words)


def _ways_to_call() -> Iterator[CallCustoms]:
    kinds: tuple[Literal["object", "string"], ...] = ("object", "string")
    for arguments, silence, has_short_ids in product(kinds, ("", None), (False, True)):
        yield CallCustoms(arguments=arguments, silence=silence, has_short_ids=has_short_ids)


def _say(role: str, text: str) -> Turn:
    return {"role": role, "content": text}


def _return(call_id: str) -> Turn:
    return {**_say("tool", _FIVE), "tool_call_id": call_id, "name": _TWO}


def _in_parts(turn: Turn) -> Turn:
    text = turn["content"]
    return {**turn, "content": [{"type": "text", "text": text}] if text else []}
