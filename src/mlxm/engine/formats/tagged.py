"""Calls whose arguments stand between tags, one by one, as plain text that the tool's schema tells how to read."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Final

import msgspec

from mlxm.engine.formats.calls import Calls
from mlxm.engine.formats.lark import Parameter, Rules, Written, parameters_of
from mlxm.engine.formats.reader import WHITESPACE, Literals, NotACall, Reading
from mlxm.engine.formats.schema import JsonType, is_text, read_types, to_json
from mlxm.types import Tool

_NAME: Final = re.compile(r"[\w.:/-]+")
_NEWLINE: Final = "\n"
_NAME_LIMIT: Final = 256
_QUOTED: Final = re.compile(r"([\"'])(.*?)\1(?:\s.*)?", re.DOTALL)


class TaggedCalls(msgspec.Struct, frozen=True, kw_only=True):
    """`open` NAME `name_end` (`key_open` KEY `key_end` VALUE `value_close`)* `close`, perhaps inside a section."""

    name: str
    open: str
    """Empty when the name follows the section's opening at once."""
    name_ends: tuple[str, ...]
    key_open: str
    key_end: str
    value_close: str
    close: str
    section: tuple[str, str] = ("", "")
    before: str = ""
    pads_values: bool = False
    """Whether the template puts a newline before and after each value."""
    untyped_is_text: bool = True
    """Whether a value of a parameter that the schema lacks is a string whatever it looks like."""
    quote: str = ""
    """What the family writes around names."""

    @property
    def markers(self) -> tuple[str, ...]:
        """The markup that special tokens may spell."""
        tags = (*self.section, self.open, self.key_open, *self.key_end.split(), self.value_close, self.close)
        return tuple(filter(None, tags))

    def openers(self) -> tuple[str, ...]:
        """What a call begins with, wherever it stands."""
        return tuple(filter(None, (self.section[0], self.open)))

    def lead_openers(self, tools: Sequence[str]) -> tuple[str, ...]:  # noqa: ARG002 - other formats need the names
        """Nothing besides."""
        return ()

    def read(self, opener: str, calls: Calls) -> Reading[None]:
        """Read the calls."""
        reader = calls.reader
        open_, section_close = Literals((self.open,)), Literals(self.section[1:])
        if opener != self.open and self.open:
            yield from reader.take_run(WHITESPACE)
            if (yield from reader.take(open_)) is None:
                raise NotACall
        while True:
            yield from _TaggedCall(self, calls).read()
            yield from reader.take_run(WHITESPACE)
            if (yield from reader.take(section_close)) is not None:
                return
            if (yield from reader.take(open_)) is None:
                reader.rewind()
                return

    def write(self, rules: Rules, tools: Sequence[Tool], *, several: bool) -> Written:
        """Calls on lines of their own, with what their parameters demand."""
        call = rules.one_of(self._write_call(rules, tool) for tool in tools)
        if not self.open:
            more = f"({rules.text(self.before + self.section[0])} {call})*" if several else ""
            return Written(self.section[0], f"{call} {more}")
        start, end = rules.text("\n" + self.open), rules.text("\n" + self.section[1])
        more = f"({start} {call})*" if several else ""
        return Written(self.section[0], f"{start} {call} {more} {end}")

    def _write_call(self, rules: Rules, tool: Tool) -> str:
        types = read_types(tool)
        parts = [
            self._write_value(rules, tool, parameter, types.get(parameter.name)) for parameter in parameters_of(tool)
        ]
        head = f"{self.quote}{tool.name}{self.quote}{self.name_ends[0]}".rstrip("\n") + "\n"
        return rules.rule(" ".join((rules.text(head), *parts, rules.text(self.close))))

    def _write_value(self, rules: Rules, tool: Tool, parameter: Parameter, types: frozenset[JsonType] | None) -> str:
        pad = "\n" if self.pads_values else ""
        tags = f"{self.key_open}{self.quote}{parameter.name}{self.quote}" + "\n".join(self.key_end.split()) + pad
        end = pad + self.value_close
        allowed = parameter.schema.get("enum", [parameter.schema["const"]] if "const" in parameter.schema else [])
        if types and "string" not in types:
            value = f"{rules.json(parameter.schema, is_strict=tool.is_strict)} {rules.text(end)}"
        elif allowed and all(isinstance(one, str) for one in allowed):
            value = f"{rules.one_of(map(rules.text, allowed))} {rules.text(end)}"
        else:
            value = rules.until(end)
        written = rules.rule(f"{rules.text(tags)} {value} {rules.text(_NEWLINE)}")
        return written if parameter.is_required else f"{written}?"


class _TaggedCall:
    def __init__(self, layout: TaggedCalls, calls: Calls) -> None:
        self._layout = layout
        self._calls = calls
        self._reader = calls.reader
        self._key_open = Literals((layout.key_open,))
        self._close = Literals((layout.close,))
        self._has_values = False

    def read(self) -> Reading[None]:
        """Read one call, from behind what opens it on."""
        name, tag = yield from self._read_name()
        self._calls.start(name)
        types = self._calls.types(name)
        has_key = tag == self._layout.key_open
        while has_key and (key := (yield from self._read_key())) is not None:
            self._calls.arguments((", " if self._has_values else "{") + json.dumps(key, ensure_ascii=False) + ": ")
            self._has_values = True
            if not (yield from self._read_value(types.get(key))):
                return
            has_key = yield from self._comes(self._key_open)
        self._calls.arguments("}" if self._has_values else "{}")
        if tag != self._layout.close:
            yield from self._comes(self._close)
        self._calls.end()

    def _read_name(self) -> Reading[tuple[str, str]]:
        """The name, and the tag behind it, which is a key's or the end."""
        layout, reader = self._layout, self._reader
        tags = (layout.close, layout.key_open)
        yield from reader.take_run(WHITESPACE)
        text, tag = yield from reader.take_until(Literals((*layout.name_ends, *tags)), _NAME_LIMIT)
        name = _bare(text)
        if tag in layout.name_ends:
            yield from reader.take_run(WHITESPACE)
            tag = yield from reader.take(Literals(tags))
        if tag is None or not _NAME.fullmatch(name):
            raise NotACall
        return name, tag

    def _comes(self, tag: Literals) -> Reading[bool]:
        """Read whitespace and the tag; when another text comes, none of both is read."""
        self._reader.hold()
        yield from self._reader.take_run(WHITESPACE)
        found = yield from self._reader.take(tag)
        if found is None:
            self._reader.rewind()
        self._reader.release()
        return found is not None

    def _read_key(self) -> Reading[str | None]:
        """What the value belongs to; None, with the tag unread again, when that never becomes clear."""
        layout, reader = self._layout, self._reader
        parts = layout.key_end.split()
        reader.hold(before=len(layout.key_open))
        try:
            key, end = yield from reader.take_until(Literals(parts[:1]), _NAME_LIMIT)
            for tag in parts[1:]:
                yield from reader.take_run(WHITESPACE)
                end = yield from reader.take(Literals((tag,)))
        except NotACall:
            end = None
        if end is None:
            reader.rewind()
        reader.release()
        return None if end is None else _bare(key)

    def _read_value(self, types: frozenset[JsonType] | None) -> Reading[bool]:
        """Hand the value out, text as it comes and anything else when it is whole; False when it has no end."""
        layout = self._layout
        if layout.pads_values:
            yield from self._reader.take_prefix("\n")
        ends = Literals(
            (layout.value_close, "\n" + layout.value_close) if layout.pads_values else (layout.value_close,)
        )
        if is_text(types, untyped_is_text=layout.untyped_is_text):
            self._calls.arguments('"')
            if (yield from self._reader.stream(ends, self._quote)) is None:
                return False
            self._calls.arguments('"')
            return True
        pieces: list[str] = []
        found = yield from self._reader.stream(ends, pieces.append)
        text = "".join(pieces)
        self._calls.arguments(text if found is None else to_json(text, types))
        return found is not None

    def _quote(self, text: str) -> None:
        self._calls.arguments(json.dumps(text, ensure_ascii=False)[1:-1])


def _bare(text: str) -> str:
    """A name without the quotes around it, and without other attributes behind those."""
    found = _QUOTED.fullmatch(text.strip())
    return text.strip() if found is None else found[2]
