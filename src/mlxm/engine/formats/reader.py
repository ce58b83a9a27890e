"""Reading text that is still being written: every parser of answers is a generator over one `Reader`.

A generator yields when what has come does not decide yet how it goes on. So it reads the same however the text was cut,
and looks like a parser of a whole text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable
from typing import Final, TypeVar

import msgspec

T = TypeVar("T")
Reading = Generator[None, None, T]
"""A reading under way; it yields whenever it needs more text."""

WHITESPACE: Final = " \t\r\n"
_HELD_LIMIT: Final = 1 << 16
_LOOK_AHEAD: Final = 1 << 10
_OUTSIDE_STRING: Final = re.compile(r'["{}\[\]<`]')
_INSIDE_STRING: Final = re.compile(r'["\\]')
_OPENING: Final = frozenset("{[")
_CLOSING: Final = frozenset("}]")
_NO_JSON: Final = frozenset("<`")
_SCALAR: Final = re.compile(r"[-+.\w]+")


class NotACall(Exception):
    """What looked like markup is none; the reader goes back to its mark and the text is the answer's own."""


class Literals:
    """Texts to look for, of which the longest wins where several match."""

    def __init__(self, literals: Iterable[str]) -> None:
        self._all = tuple(sorted({literal for literal in literals if literal}, key=len, reverse=True))
        self._firsts = frozenset(literal[0] for literal in self._all)
        self._pattern = re.compile("|".join(map(re.escape, self._all)) or r"(?!)")
        self.longest = len(self._all[0]) if self._all else 0

    def find(self, text: str, at: int, *, is_complete: bool) -> tuple[int, str | None]:
        """Up to where `text` is none of them for certain, and the one that stands there."""
        found = self._pattern.search(text, at)
        end = len(text) if found is None else found.start()
        if not is_complete:
            for place in range(max(at, len(text) - self.longest + 1), min(end + 1, len(text))):
                if text[place] in self._firsts and self.may_grow(text[place:]):
                    return place, None
        return end, None if found is None else found.group()

    def match(self, text: str) -> str | None:
        """The longest one that `text` begins with."""
        found = self._pattern.match(text)
        return None if found is None else found.group()

    def may_grow(self, text: str) -> bool:
        """Whether `text` is the unfinished beginning of one."""
        return any(len(literal) > len(text) and literal.startswith(text) for literal in self._all)


class Reader:
    """The text so far and the place up to which it is read; places are relative to it, because read text is dropped."""

    def __init__(self) -> None:
        self._text = ""
        self._at = 0
        self._mark: int | None = None
        self.is_complete = False

    def extend(self, text: str) -> None:
        """Add what has come."""
        if self._mark is None:
            self._text = self._text[self._at :] + text
            self._at = 0
        else:
            self._text += text

    # ── marks ────────────────────────────────────────────────────────────────────────────────────

    def hold(self, before: int = 0) -> None:
        """Remember this place, or one that many characters before it; what is read from there on can be read again."""
        self._mark = self._at - before

    def rewind(self) -> None:
        """Go back to the mark."""
        self._at = self._at if self._mark is None else self._mark

    def release(self) -> None:
        """Forget the mark: what was read is certain."""
        self._mark = None

    def check_held(self) -> None:
        """Raise NotACall when more is held than ever is, however it came."""
        if self._mark is not None and self._at - self._mark > _HELD_LIMIT:
            raise NotACall

    def advance(self, length: int) -> None:
        """Read `length` characters that are known to be there."""
        self._at += length

    # ── reading ──────────────────────────────────────────────────────────────────────────────────

    def more(self) -> Reading[bool]:
        """Wait for more text; False when none will come. Raises NotACall when too much is held."""
        if self.is_complete:
            return False
        if self._mark is not None and len(self._text) - self._mark > _HELD_LIMIT + _LOOK_AHEAD:
            raise NotACall
        yield
        return True

    def next_character(self) -> Reading[str]:
        """The next character, which stays unread; empty at the end."""
        while self._at >= len(self._text):
            if not (yield from self.more()):
                return ""
        return self._text[self._at]

    def peek(self, literals: Literals) -> Reading[str | None]:
        """The literal that comes next; it stays unread."""
        while True:
            ahead = self._text[self._at : self._at + literals.longest]
            if not literals.may_grow(ahead) or not (yield from self.more()):
                return literals.match(ahead)

    def take(self, literals: Literals) -> Reading[str | None]:
        """Read the literal that comes next, if one does."""
        found = yield from self.peek(literals)
        self._at += len(found or "")
        return found

    def take_run(self, characters: str) -> Reading[str]:
        """Read as long as only these characters come."""
        length = 0
        while True:
            while self._at + length < len(self._text) and self._text[self._at + length] in characters:
                length += 1
            if self._at + length < len(self._text) or not (yield from self.more()):
                run = self._text[self._at : self._at + length]
                self._at += length
                return run

    def take_prefix(self, literal: str) -> Reading[None]:
        """Read as much of `literal` as comes."""
        for character in literal:
            if (yield from self.next_character()) != character:
                return
            self._at += 1

    def take_until(self, literals: Literals, limit: int) -> Reading[tuple[str, str | None]]:
        """Read up to and with the first literal: what came before it, and itself (None at the end of the text).

        Raises NotACall when it is further than `limit` characters away.
        """
        length = 0
        while True:
            end, found = literals.find(self._text, self._at + length, is_complete=self.is_complete)
            length = end - self._at
            if length > limit:
                raise NotACall
            if found is not None or not (yield from self.more()):
                before = self._text[self._at : self._at + length]
                self._at += length + len(found or "")
                return before, found

    def stream(self, literals: Literals, emit: Callable[[str], None]) -> Reading[str | None]:
        """Hand out the text as it comes, up to the first literal, which is read too; None at the end of the text."""
        while True:
            end, found = literals.find(self._text, self._at, is_complete=self.is_complete)
            if end > self._at:
                emit(self._text[self._at : end])
            self._at = end + len(found or "")
            if found is not None or not (yield from self.more()):
                return found

    # ── JSON ─────────────────────────────────────────────────────────────────────────────────────

    def stream_brackets(self, emit: Callable[[str], None], depth: int = 0) -> Reading[None]:
        """Hand out a JSON object or array as it comes; `depth` of its brackets are read already.

        It ends where its brackets are closed, or before what stands in no JSON but begins markup.
        """
        in_string = False
        while True:
            found = (_INSIDE_STRING if in_string else _OUTSIDE_STRING).search(self._text, self._at)
            mark = None if found is None else found.group()
            end = len(self._text) if found is None else found.start() + (mark not in _NO_JSON)
            if end > self._at:
                emit(self._text[self._at : end])
                self._at = end
            in_string ^= mark == '"'
            depth += (mark in _OPENING) - (mark in _CLOSING)
            if mark in _NO_JSON or (mark in _CLOSING and depth <= 0):
                return
            if mark == "\\":
                yield from self._pass_escaped(emit)
            elif mark is None and not (yield from self.more()):
                return

    def _pass_escaped(self, emit: Callable[[str], None]) -> Reading[None]:
        character = yield from self.next_character()
        emit(character)
        self._at += len(character)

    def take_json(self) -> Reading[str]:
        """Read one JSON value whole; raises NotACall when it is none."""
        first = yield from self.next_character()
        pieces: list[str] = []
        if first in _OPENING:
            yield from self.stream_brackets(pieces.append)
        elif first == '"':
            yield from self._take_string(pieces)
        else:
            yield from self._take_scalar(pieces)
        text = "".join(pieces)
        decode_json(text)
        return text

    def take_string(self) -> Reading[str]:
        """Read a JSON string and what it says; raises NotACall when none comes."""
        if (yield from self.next_character()) != '"':
            raise NotACall
        return str(decode_json((yield from self.take_json())))

    def _take_string(self, pieces: list[str]) -> Reading[None]:
        pieces.append('"')
        self._at += 1
        while True:
            mark = yield from self.stream(_STRING_MARKS, pieces.append)
            pieces.append(mark or "")
            if mark != "\\":
                return
            yield from self._pass_escaped(pieces.append)

    def _take_scalar(self, pieces: list[str]) -> Reading[None]:
        while True:
            found = _SCALAR.match(self._text, self._at)
            if found is None:
                raise NotACall
            if found.end() < len(self._text) or not (yield from self.more()):
                pieces.append(found.group())
                self._at = found.end()
                return


_STRING_MARKS: Final = Literals(('"', "\\"))


def decode_json(text: str) -> object:
    """The value of a JSON text; raises NotACall when it is none."""
    try:
        return msgspec.json.decode(text.encode())
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        raise NotACall from error
