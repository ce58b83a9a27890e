"""The calls of Gemma 4 and FunctionGemma: arguments like JSON, but with bare keys and a marker for quotation marks."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Final

import msgspec

from mlxm.engine.formats.calls import Calls
from mlxm.engine.formats.lark import Rules, Written, arguments_of
from mlxm.engine.formats.reader import WHITESPACE, Literals, NotACall, Reading
from mlxm.engine.formats.schema import to_json
from mlxm.types import Tool

_HEAD: Final = re.compile(r"\s*call:([\w.:-]+)\s*")
_HEAD_LIMIT: Final = 256
_BRACE: Final = Literals(("{",))
_COLON: Final = Literals((":",))
_WORD: Final = "+-.0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz"
_DEPTHS: Final = {"{": 1, "[": 1, "}": -1, "]": -1, ",": 0}
_STRUCTURE: Final = Literals(_DEPTHS)


class GemmaCalls(msgspec.Struct, frozen=True, kw_only=True):
    """`open` call:NAME{KEY:VALUE,…} `close`, with strings between two `quote`."""

    name: str
    open: str
    close: str
    quote: str
    before: str = ""

    @property
    def markers(self) -> tuple[str, ...]:
        """The markup that special tokens may spell."""
        return (self.open, self.close, self.quote)

    def openers(self) -> tuple[str, ...]:
        """What a call begins with, wherever it stands."""
        return (self.open,)

    def lead_openers(self, tools: Sequence[str]) -> tuple[str, ...]:  # noqa: ARG002 - other formats need the names
        """Nothing besides."""
        return ()

    def read(self, opener: str, calls: Calls) -> Reading[None]:  # noqa: ARG002 - other formats have several
        """Read one call; the next one has an opener of its own."""
        reader = calls.reader
        head, brace = yield from reader.take_until(_BRACE, _HEAD_LIMIT)
        found = _HEAD.fullmatch(head)
        if brace is None or found is None:
            raise NotACall
        calls.start(found[1])
        calls.arguments("{")
        yield from self._read_arguments(calls)
        calls.end()
        yield from reader.take_run(WHITESPACE)
        if (yield from reader.take(Literals((self.close,)))) is None:
            reader.rewind()

    def write(self, rules: Rules, tools: Sequence[Tool], *, several: bool) -> Written:
        """Plain JSON for arguments, which is read as well."""
        call = rules.one_of(f"{rules.text('call:' + tool.name)} {arguments_of(tool, rules)}" for tool in tools)
        more = f"({rules.text(self.close + self.open)} {call})*" if several else ""
        return Written(self.open, f"{call} {more} {rules.text(self.close)}")

    def _read_arguments(self, calls: Calls) -> Reading[None]:
        """Hand out JSON up to the brace that closes it, or to what can be no part of it."""
        reader = calls.reader
        quote = Literals((self.quote,))
        depth = 1
        while depth:
            calls.arguments((yield from reader.take_run(WHITESPACE)))
            if (mark := (yield from reader.take(_STRUCTURE))) is not None:
                calls.arguments(mark)
                depth += _DEPTHS[mark]
            elif (yield from reader.take(quote)) is not None:
                calls.arguments('"')
                end = yield from reader.stream(quote, lambda text: calls.arguments(_escape(text)))
                calls.arguments('"' if end else "")
            elif not (yield from self._read_word(calls)):
                return

    def _read_word(self, calls: Calls) -> Reading[bool]:
        """Hand out a key or a value that is no string; False when none comes."""
        reader = calls.reader
        if (yield from reader.next_character()) == '"':
            calls.end()
            try:
                word = yield from reader.take_json()
            except NotACall:
                reader.rewind()
                word = ""
            reader.release()
        else:
            word = yield from reader.take_run(_WORD)
        is_key = (yield from reader.take(_COLON)) is not None
        if is_key:
            calls.arguments((word if word.startswith('"') else json.dumps(word)) + ":")
        else:
            calls.arguments(word if word.startswith('"') else to_json(word, frozenset()) if word else "")
        return bool(word) or is_key


def _escape(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]
