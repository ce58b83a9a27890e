from __future__ import annotations

import itertools
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxm.engine.formats.parser import AnswerParser, open_parser
from mlxm.types import Event, ReasoningDelta, TextDelta, ToolCallDelta, ToolCallStarted
from tests.engine.formats.transcripts import TOOLS, TRANSCRIPTS, Transcript, family_of

EACH = pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=[transcript.id for transcript in TRANSCRIPTS])


class Meaning:
    """What events come to, joined."""

    def __init__(self, events: list[Event]) -> None:
        self.content = "".join(event.text for event in events if isinstance(event, TextDelta))
        self.reasoning = "".join(event.text for event in events if isinstance(event, ReasoningDelta))
        self.calls: list[list[str]] = []
        self.order: list[str] = []
        for event in events:
            self.order.append(type(event).__name__)
            if isinstance(event, ToolCallStarted):
                assert event.index == len(self.calls)
                self.calls.append([event.name, "", event.id])
            elif isinstance(event, ToolCallDelta):
                assert event.index == len(self.calls) - 1
                self.calls[-1][1] += event.arguments

    def as_tuple(self) -> tuple[object, ...]:
        """Everything but the order of events."""
        return self.content, self.reasoning, tuple(map(tuple, self.calls))


def open_for(transcript: Transcript) -> AnswerParser:
    """A parser whose own ids count."""
    ids = itertools.count()
    return open_parser(
        family_of(transcript),
        tools=TOOLS if transcript.has_tools else (),
        ending=transcript.ending,
        new_id=lambda: f"new{next(ids)}",
    )


def read(transcript: Transcript, *pieces: str) -> Meaning:
    """What the pieces mean."""
    parser = open_for(transcript)
    events = [event for piece in pieces for event in parser.feed(piece)]
    return Meaning([*events, *parser.finish()])


@EACH
def test_a_transcript_means_what_it_says(transcript: Transcript) -> None:
    """The whole text gives the expected content, thoughts and calls."""
    meaning = read(transcript, transcript.text)
    assert meaning.content == transcript.content
    assert meaning.reasoning == transcript.reasoning
    assert [(name, arguments) for name, arguments, _ in meaning.calls] == [call[:2] for call in transcript.calls]
    expected = [call.id for call in transcript.calls]
    assert [None if mine.startswith("new") else mine for *_, mine in meaning.calls] == expected
    assert len({mine for *_, mine in meaning.calls}) == len(expected)


@EACH
def test_every_split_means_the_same(transcript: Transcript) -> None:
    """Wherever the text is cut in two, and cut into characters, it means what it means whole."""
    text = transcript.text
    whole = read(transcript, text).as_tuple()
    assert read(transcript, *text).as_tuple() == whole
    for place in range(1, len(text)):
        assert read(transcript, text[:place], text[place:]).as_tuple() == whole, text[:place]


@EACH
def test_a_truncated_answer_means_the_same_however_it_is_cut(transcript: Transcript) -> None:
    """Cut off anywhere, the text read by characters means what it means read at once, and no word is lost."""
    for end in range(len(transcript.text)):
        text = transcript.text[:end]
        meaning = read(transcript, text)
        pieces = text if end % 5 == 0 else (text[: end // 2], text[end // 2 :])
        assert read(transcript, *pieces).as_tuple() == meaning.as_tuple(), text
        assert _words_lost(meaning, text) == set(), text


@EACH
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_random_pieces_mean_the_same(transcript: Transcript, data: st.DataObject) -> None:
    """Pieces of any lengths mean what the whole means."""
    text = transcript.text
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=12)))
    pieces = [text[start:end] for start, end in itertools.pairwise([0, *cuts, len(text)])]
    assert read(transcript, *pieces).as_tuple() == read(transcript, text).as_tuple()


@EACH
def test_no_token_is_lost(transcript: Transcript) -> None:
    """Every token id comes out once, in order, and with text only of its own piece or a later one."""
    parser = open_for(transcript)
    events = [event for place, one in enumerate(transcript.text) for event in parser.feed(one, (place,))]
    carriers = [event for event in [*events, *parser.finish()] if isinstance(event, TextDelta | ReasoningDelta)]
    assert [one for event in carriers for one in event.token_ids] == list(range(len(transcript.text)))


def test_names_come_first_and_arguments_as_they_are_written() -> None:
    """A call's name is known before its arguments are, and these come piece by piece."""
    transcript = next(one for one in TRANSCRIPTS if one.id == "qwen2: look-alikes in arguments")
    order = read(transcript, *transcript.text).order
    assert order[0] == "ToolCallStarted"
    assert order.count("ToolCallDelta") >= len(transcript.calls[0].arguments) - 1


SENTINEL = "Zq9"
ATTRIBUTES = re.compile(r'"(?:type|id|tool_call_id)": "[^"]*"| string="\w*"| to=python code')


@EACH
def test_a_word_anywhere_in_the_text_comes_out(transcript: Transcript) -> None:
    """A foreign word is never taken for markup, whatever it breaks; only attributes that nobody needs may hold one."""
    text = transcript.text
    skipped = {place for found in ATTRIBUTES.finditer(text) for place in range(found.start(), found.end() + 1)}
    for place in set(range(len(text) + 1)) - skipped:
        broken = text[:place] + SENTINEL + text[place:]
        meaning = read(transcript, broken).as_tuple()
        assert SENTINEL in repr(meaning), broken
        if place % 8 == 0:
            assert read(transcript, *broken).as_tuple() == meaning, broken


MARKUP = (
    "<tool_call>",
    "</tool_call>",
    "<think>",
    "</think>",
    "\n",
    '{"name": "get_weather", "arguments": {',
    '"a": 1',
    "}",
    "}}",
    "]",
    "<function=get_weather>",
    "<parameter=city>",
    "</parameter>",
    "</function>",
    "Hello ",
    "[",
    "<arg_key>city</arg_key>",
    "<arg_value>",
    "</arg_value>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "get_weather",
    '"',
    "\\",
    "<|channel|>final",
    "<|message|>",
    "<|end|>",
    "<|start|>assistant",
    " to=functions.f",
    "<|call|>",
    "`",
    ", ",
)


@settings(max_examples=150, deadline=None)
@given(
    family=st.sampled_from(sorted({transcript.family for transcript in TRANSCRIPTS})),
    pieces=st.lists(st.sampled_from(MARKUP), max_size=14),
)
def test_markup_in_any_order_is_read_alike(family: str, pieces: list[str]) -> None:
    """Nonsense of every family's markup raises nothing, loses no word, and is the same in pieces as whole."""
    text = "".join(pieces)
    transcript = Transcript(family, "nonsense", text)
    whole = read(transcript, text)
    assert read(transcript, *pieces).as_tuple() == whole.as_tuple()
    assert read(transcript, *text).as_tuple() == whole.as_tuple()
    assert whole.content.count("Hello") + whole.reasoning.count("Hello") + json.dumps(whole.calls).count(
        "Hello"
    ) == text.count("Hello")


KEPT = ("London", "Hello", "look", "Hm", "Yes", "Checking", "quoted", "what", "what?", "Well")


def _words_lost(meaning: Meaning, text: str) -> set[str]:
    """Words of the text, no markup among them, that come out nowhere."""
    everything = repr(meaning.as_tuple())
    return {word for word in KEPT if word in text and word not in everything}
