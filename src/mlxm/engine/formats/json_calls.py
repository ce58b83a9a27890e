"""Calls whose arguments are JSON: as whole JSON objects between tags, or as a head with the name and JSON after it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Final

import msgspec

from mlxm.engine.formats.calls import Calls
from mlxm.engine.formats.lark import Rules, Written, arguments_of
from mlxm.engine.formats.reader import WHITESPACE, Literals, NotACall, Reader, Reading, decode_json
from mlxm.types import Tool

_NAME_KEYS: Final = frozenset({"name", "tool_name", "function"})
_ARGUMENT_KEYS: Final = frozenset({"arguments", "parameters"})
_ID_KEYS: Final = frozenset({"id"})
_OTHER_KEYS: Final = frozenset({"id", "index", "tool_call_id", "type"})
_COMMA: Final = Literals((",",))
_COLON: Final = Literals((":",))
_SEMICOLON: Final = Literals((";",))
_BRACE: Final = Literals(("{",))
_CLOSING_BRACE: Final = Literals(("}",))
_BRACKETS: Final = Literals(("[", "]"))
_FENCE: Final = Literals(("```",))
_INDEX: Final = "\0"
_HEAD_LIMIT: Final = 512


class JsonCalls(msgspec.Struct, frozen=True, kw_only=True):
    """A JSON object with name and arguments, or a list of such, between `opens` and `close`.

    Without `opens` the objects stand bare at the answer's beginning. There they need both a known name and arguments,
    because an answer may be JSON too.
    """

    name: str
    opens: tuple[str, ...] = ()
    close: str = ""
    before: str = ""
    also_bare: bool = False
    keys: tuple[str, str] = ("name", "arguments")
    """How the family itself writes the two."""
    writes_list: bool = False
    pad: str = ""
    """What the family writes inside its tags."""

    @property
    def markers(self) -> tuple[str, ...]:
        """The markup that special tokens may spell."""
        return tuple(filter(None, (*self.opens, self.close)))

    def openers(self) -> tuple[str, ...]:
        """What a call begins with, wherever it stands."""
        return self.opens

    def lead_openers(self, tools: Sequence[str]) -> tuple[str, ...]:
        """A brace, for bare calls."""
        return ("{",) if self.also_bare and tools else ()

    def read(self, opener: str, calls: Calls) -> Reading[None]:
        """Read the objects."""
        reader = calls.reader
        if opener == "{":
            yield from _Envelope(calls, is_bare=True).read()
            yield from self._read_more_bare(calls)
            return
        yield from reader.take_run(WHITESPACE)
        if (yield from reader.take(_BRACKETS)) == "[":
            yield from _read_list(calls)
        else:
            yield from _read_object(calls)
        if self.close:
            yield from _read_close(reader, Literals((self.close,)))
        elif self.also_bare:
            yield from self._read_more_bare(calls)

    def write(self, rules: Rules, tools: Sequence[Tool], *, several: bool) -> Written:
        """Objects in a list, or each in tags of its own."""
        name_key, arguments_key = self.keys
        call = rules.one_of(
            rules.text(f'{{"{name_key}": {json.dumps(tool.name)}, "{arguments_key}": ')
            + f" {arguments_of(tool, rules)} "
            + rules.text("}")
            for tool in tools
        )
        opener = "" if self.also_bare else self.opens[0]
        between, end = rules.text(", " if self.writes_list else "; "), rules.text(self.pad + self.close)
        if self.writes_list:
            more = f"({between} {call})*" if several else ""
            return Written(opener, f"{rules.text(self.pad + '[')} {call} {more} {rules.text(']')} {end}")
        if opener:
            between = f"{end} {rules.text(self.before + opener + self.pad)}"
        more = f"({between} {call})*" if several else ""
        return Written(opener, f"{rules.text(self.pad)} {call} {more} {end}")

    def _read_more_bare(self, calls: Calls) -> Reading[None]:
        """Further objects, with or without semicolons between them."""
        reader = calls.reader
        while True:
            yield from reader.take_run(WHITESPACE)
            if (yield from reader.take(_SEMICOLON)) is not None:
                yield from reader.take_run(WHITESPACE)
            if (yield from reader.take(_BRACE)) is None:
                reader.rewind()
                return
            yield from _Envelope(calls, is_bare=True).read()


def _read_object(calls: Calls) -> Reading[None]:
    if (yield from calls.reader.take(_BRACE)) is None:
        raise NotACall
    yield from _Envelope(calls).read()


def _read_list(calls: Calls) -> Reading[None]:
    while True:
        yield from calls.reader.take_run(WHITESPACE)
        yield from _read_object(calls)
        yield from calls.reader.take_run(WHITESPACE)
        if (yield from calls.reader.take(_COMMA)) is None:
            break
    if (yield from calls.reader.take(_BRACKETS)) == "]":
        calls.end()
    else:
        calls.reader.rewind()


def _read_close(reader: Reader, close: Literals) -> Reading[None]:
    """Read the closing markup, and what brackets are too many before it; nothing is read when it does not come."""
    yield from reader.take_run(WHITESPACE + "}]")
    if (yield from reader.take(close)) is None:
        reader.rewind()


class _Envelope:
    """Reads the fields of one object, from behind its brace on."""

    def __init__(self, calls: Calls, *, is_bare: bool = False) -> None:
        self._calls = calls
        self._reader = calls.reader
        self._is_bare = is_bare
        self._name: str | None = None
        self._id: str | None = None
        self._arguments: str | None = None
        self._is_started = False

    def read(self) -> Reading[None]:
        """Hand the call out as soon as its name is known and its arguments begin."""
        try:
            yield from self._read_fields(is_nested=False)
        except NotACall:
            if not self._is_started:
                raise
            self._reader.rewind()
            return
        if not self._is_started:
            self._start(self._arguments)
        self._calls.end()

    def _read_fields(self, *, is_nested: bool) -> Reading[None]:
        reader = self._reader
        while True:
            yield from reader.take_run(WHITESPACE)
            key = yield from reader.take_string()
            yield from reader.take_run(WHITESPACE)
            if (yield from reader.take(_COLON)) is None:
                raise NotACall
            yield from reader.take_run(WHITESPACE)
            yield from self._read_field(key, is_nested=is_nested)
            yield from reader.take_run(WHITESPACE)
            if (yield from reader.take(_COMMA)) is not None:
                continue
            if (yield from reader.take(_CLOSING_BRACE)) is None:
                raise NotACall
            return

    def _read_field(self, key: str, *, is_nested: bool) -> Reading[None]:
        first = yield from self._reader.next_character()
        if key == "function" and first == "{" and not is_nested:
            self._reader.advance(1)
            yield from self._read_fields(is_nested=True)
        elif key in _NAME_KEYS and first == '"':
            self._name = yield from self._reader.take_string()
        elif key in _ID_KEYS and first == '"':
            self._id = yield from self._reader.take_string()
        elif key in _ARGUMENT_KEYS and self._name is not None and first == "{" and not self._is_started:
            yield from self._stream_arguments()
        elif key in _ARGUMENT_KEYS and not self._is_started:
            self._arguments = _as_object((yield from self._reader.take_json()))
        elif key in _OTHER_KEYS:
            yield from self._reader.take_json()
        else:
            raise NotACall

    def _stream_arguments(self) -> Reading[None]:
        self._reader.advance(1)
        space = yield from self._reader.take_run(WHITESPACE)
        if (yield from self._reader.next_character()) not in {'"', "}"}:
            raise NotACall
        self._start("{" + space)
        yield from self._reader.stream_brackets(self._calls.arguments, depth=1)
        self._calls.end()

    def _start(self, arguments: str | None) -> None:
        if self._name is None or (self._is_bare and (arguments is None or not self._calls.knows(self._name))):
            raise NotACall
        self._is_started = True
        self._calls.start(self._name, self._id)
        self._calls.arguments("{}" if arguments is None else arguments)


def _as_object(text: str) -> str:
    """Arguments as JSON of an object; some models write that JSON as a string, or null for none."""
    value = decode_json(text)
    if isinstance(value, str):
        text, value = value, decode_json(value or "{}")
        text = text or "{}"
    if value is None:
        return "{}"
    if not isinstance(value, dict):
        raise NotACall
    return text


class HeadedCalls(msgspec.Struct, frozen=True, kw_only=True):
    """A head with the name, JSON, and closing markup, several times over and perhaps inside a section.

    The head is all from behind the opener to the arguments' brace; a pattern with the groups `name` and `id` reads it.
    """

    name: str
    head: str
    opens: tuple[str, ...] = ()
    """What one call begins with."""
    section: tuple[str, str] = ("", "")
    """What stands around all calls."""
    close: str = ""
    before: str = ""
    named_by_tool: str = ""
    """What follows a tool's bare name where that opens a call at the answer's beginning."""
    goes_on_bare: bool = False
    """Whether another head may follow with no opener of its own."""
    head_markers: tuple[str, ...] = ()
    """Markup inside of heads."""
    writes: tuple[str, str] = ("{name}", "")
    """What the family itself writes before the arguments, and between them and the closing markup."""

    @property
    def markers(self) -> tuple[str, ...]:
        """The markup that special tokens may spell."""
        return tuple(filter(None, (*self.section, *self.opens, *self.head_markers, self.close)))

    def openers(self) -> tuple[str, ...]:
        """What a call begins with, wherever it stands."""
        return tuple(filter(None, (self.section[0], *self.opens)))

    def lead_openers(self, tools: Sequence[str]) -> tuple[str, ...]:
        """The tools' names, for the format that has nothing else."""
        return tuple(tool + self.named_by_tool for tool in tools) if self.named_by_tool else ()

    def read(self, opener: str, calls: Calls) -> Reading[None]:
        """Read the calls."""
        reader = calls.reader
        opens = Literals(self.opens)
        section_close = Literals(self.section[1:])
        named = opener.removesuffix(self.named_by_tool) if self.named_by_tool else ""
        if opener == self.section[0]:
            yield from reader.take_run(WHITESPACE)
            if (yield from reader.take(opens)) is None:
                raise NotACall
        while True:
            yield from self._read_call(named, calls)
            yield from reader.take_run(WHITESPACE)
            if (yield from reader.take(section_close)) is not None:
                return
            if (yield from reader.take(opens)) is None and not self.goes_on_bare:
                reader.rewind()
                return

    def write(self, rules: Rules, tools: Sequence[Tool], *, several: bool) -> Written:
        """Heads with arguments, inside the section if there is one."""
        call = rules.one_of(
            f"{self._write_head(tool, rules)} {arguments_of(tool, rules)} {rules.text(self.writes[1] + self.close)}"
            for tool in tools
        )
        own = self.opens[0] if self.opens else ""
        may_repeat = several and bool(own)
        more = f"({rules.text((self.before if self.section[0] else '') + own)} {call})*" if may_repeat else ""
        if self.section[0]:
            return Written(self.section[0], f"{rules.text(own)} {call} {more} {rules.text(self.section[1])}")
        return Written(own, f"{call} {more}")

    def _write_head(self, tool: Tool, rules: Rules) -> str:
        before, index, after = self.writes[0].format(name=tool.name, index=_INDEX).partition(_INDEX)
        return f"{rules.text(before)} /[0-9][0-9]?/ {rules.text(after)}" if index else rules.text(before)

    def _read_call(self, named: str, calls: Calls) -> Reading[None]:
        reader = calls.reader
        head, brace = yield from reader.take_until(_BRACE, _HEAD_LIMIT)
        found = re.fullmatch(self.head, named + head)
        if brace is None or found is None:
            raise NotACall
        space = yield from reader.take_run(WHITESPACE)
        if (yield from reader.next_character()) not in {'"', "}"}:
            raise NotACall
        calls.start(_first(found, "name"), found.groupdict().get("id"))
        calls.arguments("{" + space)
        yield from reader.stream_brackets(calls.arguments, depth=1)
        calls.end()
        yield from self._read_close(calls)

    def _read_close(self, calls: Calls) -> Reading[None]:
        reader = calls.reader
        if not self.close:
            return
        yield from reader.take_run(WHITESPACE + "}")
        if (yield from reader.take(_FENCE)) is not None:
            yield from reader.take_run(WHITESPACE)
        if (yield from reader.take(Literals((self.close,)))) is not None:
            calls.end()
        else:
            reader.rewind()


def _first(found: re.Match[str], group: str) -> str:
    """The group of that name, or with a number behind it, that took part in the match."""
    return next(value for key, value in found.groupdict().items() if key.startswith(group) and value is not None)
