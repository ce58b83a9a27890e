"""The harmony layout of gpt-oss: an answer is messages, each with a channel, and a call is one with a recipient.

<|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…
<|start|>assistant<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{…}<|call|>
"""

from __future__ import annotations

import re
from typing import Final

from mlxm.engine.formats.calls import Calls, Outlet
from mlxm.engine.formats.reader import WHITESPACE, Literals, NotACall, Reading

MARKERS: Final = ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>")
_START, _CHANNEL, _, _MESSAGE, *_ENDS = MARKERS
_HEADER_STARTS: Final = Literals((_START, _CHANNEL, _MESSAGE, " to="))
_HEADER_ENDS: Final = Literals((_MESSAGE, *_ENDS))
_BODY_ENDS: Final = Literals((_START, _CHANNEL, *_ENDS))
_END_MARKS: Final = Literals(_ENDS)
_NEXT_HEADER: Final = frozenset({_START, _CHANNEL})
_CHANNELS: Final = ("analysis", "commentary", "final")
_HEADER: Final = re.compile(
    r"(?:<\|start\|>)?(?:assistant)?(?: to=(?P<role_recipient>[^\s<]+))?"
    r"(?:<\|channel\|>(?P<channel>analysis|commentary|final)(?: to=(?P<recipient>[^\s<]+))?"
    r"(?:(?:\s*<\|constrain\|>|\s+)(?:json|code))?\s*)?"
)
_LONE_HEADERS: Final = tuple(
    start + _CHANNEL + channel for start in ("", _START + "assistant") for channel in _CHANNELS
)
_HEADER_LIMIT: Final = 512
_PREFIX: Final = "functions."


class HarmonyAnswer:
    """Reads messages until the text ends; without `takes_calls`, those to tools are plain content."""

    def __init__(self, calls: Calls, outlet: Outlet, *, ending: str, takes_calls: bool) -> None:
        self._reader = calls.reader
        self._outlet = outlet
        self._calls = calls
        self._takes_calls = takes_calls
        self._ending = ending.rpartition(_START)[2] if _START in ending or _CHANNEL in ending else ""

    def read(self) -> Reading[None]:
        """Read the whole answer, which may begin inside of a message that the prompt has opened."""
        prompted, is_open, _ = self._ending.partition(_MESSAGE)
        mark = (yield from self._read_body(prompted, "")) if is_open else None
        while (yield from self._reader.next_character()):
            mark = yield from self._read_message("" if is_open else prompted, mark if mark in _NEXT_HEADER else "")
            prompted = ""

    def _read_message(self, prompted: str, begun: str) -> Reading[str]:
        """Read one message, whose header the prompt or the mark before it have begun; the mark that ends it."""
        reader = self._reader
        reader.hold()
        if not (begun or _CHANNEL in prompted or (yield from reader.peek(_HEADER_STARTS)) is not None):
            reader.release()
            yield from reader.take(_END_MARKS)
            return (yield from reader.stream(_BODY_ENDS, self._outlet.content)) or ""
        try:
            text, mark = yield from reader.take_until(_HEADER_ENDS, _HEADER_LIMIT)
        except NotACall:
            reader.rewind()
            reader.release()
            self._outlet.content(begun)
            return (yield from reader.stream(_BODY_ENDS, self._outlet.content)) or ""
        reader.release()
        if mark == _MESSAGE:
            return (yield from self._read_body(prompted, begun + text))
        if not any(header.startswith(begun + text) for header in _LONE_HEADERS):  # else nothing has been said yet
            self._outlet.content(begun + text)
        return mark or ""

    def _read_body(self, prompted: str, written: str) -> Reading[str]:
        """Read a message from behind its header, of which the prompt has the first part."""
        header = _HEADER.fullmatch(prompted + written)
        recipient = None if header is None else header["recipient"] or header["role_recipient"]
        is_thought = header is not None and header["channel"] == "analysis"
        emit = self._outlet.reasoning if is_thought else self._outlet.content
        is_call = recipient is not None and (self._is_tool(recipient) or not is_thought)
        space = (yield from self._reader.take_run(WHITESPACE)) if is_call else ""
        if is_call and self._takes_calls and (yield from self._begin_call(str(recipient).removeprefix(_PREFIX))):
            emit = self._calls.arguments
        elif header is None or is_call:
            emit(written + (_MESSAGE if written else "") + space)
        return (yield from self._reader.stream(_BODY_ENDS, emit)) or ""

    def _is_tool(self, recipient: str) -> bool:
        """What the model may say to tools of its own, such as browser.search, is part of its thoughts."""
        return recipient.startswith(_PREFIX) or self._calls.knows(recipient)

    def _begin_call(self, name: str) -> Reading[bool]:
        """Begin a call if its arguments, or nothing, come; only JSON makes one."""
        is_empty = (yield from self._reader.peek(_BODY_ENDS)) is not None
        first = yield from self._reader.next_character()
        if first not in {"{", ""} and not is_empty:
            return False
        self._calls.start(name)
        self._calls.arguments("" if first == "{" else "{}")
        return True
