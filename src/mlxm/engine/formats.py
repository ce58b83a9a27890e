"""From a model's raw text to neutral events: content, thoughts and calls, however the text is cut into pieces.

    family = families.recognise(model_type, template, added_tokens)
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

from mlxm.engine.families import Family
from mlxm.engine.formats_calls import Calls, NewId, Outlet, ToolFormat, new_call_id
from mlxm.engine.formats_harmony import HarmonyAnswer
from mlxm.engine.formats_reader import WHITESPACE, Literals, NotACall, Reader, Reading
from mlxm.engine.formats_schema import read_types
from mlxm.engine.formats_tools import TOOLS, ReasoningTags
from mlxm.types import Event, TextDelta, TokenLogprobs, Tool, ToolChoice

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
    ending = ending.removesuffix(begun)
    answer: _Answer
    if family.is_harmony:
        answer = HarmonyAnswer(reader, outlet, calls, ending=ending, takes_calls=takes_calls)
    else:
        forms = [TOOLS[name] for name in family.tools] if takes_calls else []
        answer = TaggedAnswer(reader, outlet, calls, forms, family.reasoning, ending)
    parser = AnswerParser(reader, outlet, answer, choice)
    parser.feed(begun)
    return parser


class _Answer(Protocol):
    def read(self) -> Reading[None]:
        """Read the whole answer."""
        ...


class AnswerParser:
    """Turns the text of one choice into events as it comes."""

    def __init__(self, reader: Reader, outlet: Outlet, answer: _Answer, choice: int) -> None:
        self._reader = reader
        self._outlet = outlet
        self._choice = choice
        self._reading = answer.read()
        self._token_ids: tuple[int, ...] = ()
        self._logprobs: tuple[TokenLogprobs, ...] = ()
        next(self._reading)

    @property
    def num_calls(self) -> int:
        """How many calls have begun."""
        return self._outlet.num_calls

    def feed(
        self, text: str, token_ids: tuple[int, ...] = (), logprobs: tuple[TokenLogprobs, ...] = ()
    ) -> list[Event]:
        """What has become certain with more text."""
        self._token_ids += token_ids
        self._logprobs += logprobs
        if text:
            self._reader.extend(text)
            next(self._reading)
        return self._drain()

    def finish(self) -> list[Event]:
        """What was held back, when no more comes."""
        self._reader.is_complete = True
        next(self._reading, None)
        events = self._drain()
        if self._token_ids:
            events.append(TextDelta(self._choice, "", self._token_ids, self._logprobs))
            self._token_ids, self._logprobs = (), ()
        return events

    def _drain(self) -> list[Event]:
        events = self._outlet.drain(self._token_ids, self._logprobs)
        if any(isinstance(event, CARRIERS) for event in events):
            self._token_ids, self._logprobs = (), ()
        return events


class TaggedAnswer:
    """An answer of text in which thoughts and calls stand between tags.

    The text is read in two states: where nothing of the answer has come since its beginning or the last tag, thoughts
    and bare calls may begin and white space waits; among words only calls with an opener of their own may.
    """

    def __init__(
        self,
        reader: Reader,
        outlet: Outlet,
        calls: Calls,
        forms: Sequence[ToolFormat],
        tags: ReasoningTags | None,
        ending: str,
    ) -> None:
        self._reader = reader
        self._outlet = outlet
        self._calls = calls
        self._tags = tags
        self._ending = ending
        self._forms = _by_opener(forms, calls.tool_names)
        openers = {opener: form.before + opener for form in forms for opener in form.openers()}
        thoughts = (tags.open, tags.close, tags.answer[0]) if tags else ()
        self._lead = Literals((*self._forms, *thoughts))
        self._words = Literals((*openers, *openers.values()))
        self._last_words = Literals((*openers, *openers.values(), tags.answer[1] if tags else ""))

    def read(self) -> Reading[None]:
        """Read the whole answer."""
        if self._tags is not None and _is_open(self._tags, self._ending):
            yield from self._read_thoughts(self._tags, is_prompted=True)
        after_call = False
        in_answer_tag = False
        while True:
            space = yield from self._reader.take_run(WHITESPACE)
            self._reader.hold()
            literal = yield from self._reader.peek(self._lead)
            
