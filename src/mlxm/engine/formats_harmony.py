"""The harmony layout of gpt-oss: an answer is several messages, each with a channel, and a call is one with a recipient.

    <|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…
    <|start|>assistant<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{…}<|call|>
"""

from __future__ import annotations

import re
from typing import Final

from mlxm.engine.formats_calls import Calls, Outlet
from mlxm.engine.formats_reader import WHITESPACE, Literals, NotACall, Reader, Reading

MARKERS: Final = ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>")
_START, _CHANNEL, _, _MESSAGE, *_ENDS = MARKERS
_HEADER_STARTS: Final = Literals((_START, _CHANNEL, _MESSAGE, " to="))
_HEADER_ENDS: Final = Literals((_MESSAGE, *_ENDS))
_BODY_ENDS: Final = Literals((_START, _CHANNEL, *_ENDS))
_END_MARKS: Final = Literals(_ENDS)
_NEXT_HEADER: Final = frozenset({_START, _CHANNEL})
_CHANNEL_NAME: Final = re.compile(r"<\|channel\|>\s*(\w+)")
_RECIPIENT: Final = re.compile(r"\bto=([^\s<]+)")
_BEGUN_HEADER: Final = re.compile(r"(?:<\|start\|>)?\w*(?:<\|channel\|>\s*\w*\s*)?(?:<\|constrain\|>\w*)?")
_HEADER_LIMIT: Final = 512
_PREFIX: Final = "functions."


class HarmonyAnswer:
    """Reads messages until the text ends; without `takes_calls`, those to tools are plain content."""

    def __init__(self, reader: Reader, outlet: Outlet, calls: Calls, *, ending: str, takes_calls: bool) -> None:
        self._reader = reader
        self._outlet = outlet
        self._calls = calls
        self._takes_calls = takes_calls
        self._ending = ending.rpartition(_START)[2]

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
            return yield from self._read_body(prompted, begun + text)
        if not _BEGUN_HEADER.fullmatch(begun + text):  # an answer that ends in its header has said nothing
            self._outlet.content(begun + text)
        return mark or ""

    def _read_body(self, prompted: str, written: str) -> Reading[str]:
        """Read a message from behind its header, of which the prompt has the first part."""
        channel = _CHANNEL_NAME.search(prompted + written)
        recipient = _RECIPIENT.search(prompted + written)
        is_thought = channel is not None and channel[1] == "analysis"
        emit = self._outlet.reasoning if is_thought else self._outlet.content
        if recipient is None or (is_thought and not self._is_tool(recipient[1])):
            return (yield from self._reader.stream(_BODY_ENDS, emit)) or ""
        space = yield from self._reader.take_run(WHITESPACE)
        if not self._takes_calls or not (yield from self._begin_call(recipient[1].removeprefix(_PREFIX))):
            emit(written + (_MESSAGE if written else "") + space)
            return (yield from self._reader.stream(_BODY_ENDS, emit)) or ""
        return (yield from self._reader.stream(_BODY_ENDS, self._calls.arguments)) or ""

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
