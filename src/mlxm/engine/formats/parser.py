"""From a model's raw text to neutral events: content, thoughts and calls, however the text is cut into pieces.

    family = families.recognise(model_type, template, added_tokens)
    kept = family.kept_tokens(special_tokens)                           # the worker leaves these in the text
    parser = open_parser(family, tools=request.tools, tool_choice=request.tool_choice, ending=tokens.ending)
    events = parser.feed(delta.text, delta.token_ids, delta.logprobs)   # for each delta of one choice
    events += parser.finish()                                           # once no more comes
    reason = "tool_calls" if parser.num_calls and reason == "stop" else reason

What has been handed out is never taken back. Markup that turns out to be none, such as a call cut off before its name
is complete, is content. Newlines that a family's template prints around its tags are markup, and so is white space that
is all there is between tags; nothing else is left out of the answer. No tokens are lost: those of markup go with the
next text, or with an empty one at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from mlxm.engine.formats.calls import Calls, NewId, Outlet, ToolFormat, new_call_id
from mlxm.engine.formats.families import Family
from mlxm.engine.formats.harmony import HarmonyAnswer
from mlxm.engine.formats.reader import WHITESPACE, Literals, NotACall, Reader, Reading
from mlxm.engine.formats.schema import read_types
from mlxm.engine.formats.tools import TOOLS, ReasoningTags
from mlxm.types import Event, TokenLogprobs, Tool, ToolChoice

_AUTO: Final = ToolChoice()


def open_parser(
    family: Family,
    *,
    tools: Sequence[Tool] = (),
    tool_choice: ToolChoice = _AUTO,
    ending: str = "",
    begun: str = "",
    choice: int = 0,
    new_id: NewId = new_call_id,
) -> AnswerParser:
    """A parser for one choice.

    `ending` is how the prompt ends, which tells whether it has opened the thoughts already. `begun` is the part of the
    answer that the request has written itself and the prompt ends with; no events come of it.
    """
    reader = Reader()
    outlet = Outlet(choice, new_id)
    calls = Calls(reader, outlet, {tool.name: read_types(tool) for tool in tools})
    takes_calls = bool(tools) and tool_choice.mode != "none"
    ending = "" if begun.endswith(ending) else ending.removesuffix(begun)
    answer: _Answer
    if family.is_harmony:
        answer = HarmonyAnswer(calls, outlet, ending=ending, takes_calls=takes_calls)
    else:
        answer = TaggedAnswer(calls, outlet, family, ending=ending, takes_calls=takes_calls)
    parser = AnswerParser(reader, outlet, answer)
    parser.feed(begun)
    return parser


class _Answer(Protocol):
    def read(self) -> Reading[None]:
        """Read the whole answer."""
        ...


class AnswerParser:
    """Turns the text of one choice into events as it comes."""

    def __init__(self, reader: Reader, outlet: Outlet, answer: _Answer) -> None:
        self._reader = reader
        self._outlet = outlet
        self._reading = answer.read()
        next(self._reading)

    @property
    def num_calls(self) -> int:
        """How many calls have begun."""
        return self._outlet.num_calls

    def feed(self, text: str, token_ids: tuple[int, ...] = (), logprobs: tuple[TokenLogprobs, ...] = ()) -> list[Event]:
        """What has become certain with more text, which these tokens made."""
        self._outlet.carry(token_ids, logprobs)
        if text:
            self._reader.extend(text)
            next(self._reading)
        return self._outlet.drain()

    def finish(self) -> list[Event]:
        """What was held back, when no more comes."""
        self._reader.is_complete = True
        next(self._reading, None)
        return self._outlet.finish()


class TaggedAnswer:
    """An answer of text in which thoughts and calls stand between tags.

    Where nothing of the answer has come since its beginning or the last tag, thoughts and bare calls may begin, and
    white space waits for what follows it. Among words only calls with an opener of their own may begin.
    """

    def __init__(self, calls: Calls, outlet: Outlet, family: Family, *, ending: str, takes_calls: bool) -> None:
        self._reader = calls.reader
        self._outlet = outlet
        self._calls = calls
        self._tags = family.reasoning
        self._ending = ending
        forms = [TOOLS[name] for name in family.tools] if takes_calls else []
        self._forms = _by_opener(forms, calls.tool_names)
        self._openers = {before + o: o for form in forms for o in form.openers() for before in ("", form.before)}
        self._answer_open, self._answer_close = ("", "") if self._tags is None else self._tags.answer
        thoughts = () if self._tags is None else (self._tags.open, self._tags.close, *self._tags.answer)
        self._lead = Literals((*self._forms, *thoughts))
        self._words = Literals(self._openers)
        self._tagged_words = Literals((*self._openers, self._answer_close))
        self._is_after_call = False
        self._is_in_answer_tag = False

    def read(self) -> Reading[None]:
        """Read the whole answer."""
        if self._tags is not None and (printed := _after_open_tag(self._tags, self._ending)) is not None:
            yield from self._read_prompted_thoughts(self._tags, printed)
        while (yield from self._reader.next_character()):
            yield from self._read_part()

    def _read_part(self) -> Reading[None]:
        """Read one construct, or words up to and with the next one."""
        space = yield from self._reader.take_run(WHITESPACE)
        self._reader.hold()
        literal = (yield from self._reader.take(self._lead)) or ""
        if literal and (yield from self._read_markup(literal)):
            return
        self._reader.release()
        is_over = not literal and not (yield from self._reader.next_character())
        if not (is_over and self._is_after_call):
            self._outlet.content(space + literal)
            yield from self._read_words()

    def _read_words(self) -> Reading[None]:
        while True:
            words = self._tagged_words if self._is_in_answer_tag else self._words
            literal = yield from self._reader.stream(words, self._outlet.content)
            if literal is None:
                return
            if literal in self._openers:
                self._reader.hold(before=len(literal))
                if (yield from self._read_calls(self._openers[literal], len(literal))):
                    return
                self._outlet.content(literal)
            else:
                self._is_in_answer_tag = False

    def _read_markup(self, literal: str) -> Reading[bool]:
        """Read what the literal begins, from behind it on; False, and nothing read, when it begins nothing."""
        if literal in self._forms:
            return (yield from self._read_calls(literal, len(literal)))
        self._reader.release()
        self._is_after_call = False
        if self._tags is None or literal in self._tags.answer:
            self._is_in_answer_tag = literal == self._answer_open
        elif literal == self._tags.open:
            yield from self._reader.take_prefix(self._tags.after_open)
            yield from self._read_thoughts(self._tags)
        else:
            yield from self._reader.take_prefix(self._tags.after_close)
        return True

    # ── calls ────────────────────────────────────────────────────────────────────────────────────

    def _read_calls(self, opener: str, length: int) -> Reading[bool]:
        """Try the formats that begin so; a call that has begun stays one, and what follows it is read as text."""
        num_before = self._calls.num_started
        for form in self._forms[opener]:
            try:
                yield from form.read(opener, self._calls)
            except NotACall:
                self._reader.rewind()
            else:
                num_before = -1
            if self._calls.num_started > num_before:
                self._reader.release()
                self._is_after_call = True
                return True
            self._reader.advance(length)
        self._reader.release()
        return False

    # ── thoughts ─────────────────────────────────────────────────────────────────────────────────

    def _read_prompted_thoughts(self, tags: ReasoningTags, printed: str) -> Reading[None]:
        """Read thoughts that the prompt has opened; some models open them once more."""
        if not printed:
            yield from self._reader.take_prefix(tags.after_open)
        if (yield from self._reader.take(Literals((tags.open,)))) is not None:
            yield from self._reader.take_prefix(tags.after_open)
        yield from self._read_thoughts(tags)

    def _read_thoughts(self, tags: ReasoningTags) -> Reading[None]:
        """Read up to the tag that closes them; an opening tag on a line of its own has to be closed first."""
        nested = f"\n{tags.open}\n"
        marks = Literals((nested, tags.close, tags.before_close + tags.close))
        depth = 1
        while (mark := (yield from self._reader.stream(marks, self._outlet.reasoning))) is not None:
            depth += 1 if mark == nested else -1
            if not depth:
                yield from self._reader.take_prefix(tags.after_close)
                return
            self._outlet.reasoning(mark)


def _by_opener(forms: Sequence[ToolFormat], tools: Sequence[str]) -> dict[str, list[ToolFormat]]:
    found: dict[str, list[ToolFormat]] = {}
    for form in forms:
        for opener in (*form.openers(), *form.lead_openers(tools)):
            found.setdefault(opener, []).append(form)
    return found


def opens_thoughts(tags: ReasoningTags, ending: str) -> bool:
    """Whether a prompt that ends so has opened the thoughts."""
    return _after_open_tag(tags, ending) is not None


def _after_open_tag(tags: ReasoningTags, ending: str) -> str | None:
    """What the prompt prints behind the tag with which it opens the thoughts; None when it does not."""
    before, _, after = ending.rpartition(tags.open)
    return None if not ending.endswith(tags.open + after) or after.strip() or before == ending else after
