import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mlxm.types import (
    ChoiceEnded,
    Ended,
    Event,
    FinishReason,
    Likely,
    ReasoningDelta,
    Started,
    TextDelta,
    TokenLogprobs,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from mlxm.wire import openai_chat_answers, sse
from mlxm.wire.openai_chat_answers import ChunkWriter
from mlxm.wire.openai_usage import Heading, shown_token

GOLDEN = Path(__file__).parent / "golden" / "openai_chat"
WRITES_GOLDEN = os.environ.get("MLXM_WRITE_GOLDEN") == "1"


def text(content: str, *ids: int) -> TextDelta:
    """More text."""
    return TextDelta(choice=0, text=content, token_ids=ids)


def ended(reason: FinishReason, usage: Usage) -> list[Event]:
    """How every story ends."""
    return [ChoiceEnded(choice=0, reason=reason), Ended(usage)]


STORIES: dict[str, list[Event]] = {
    "words": [
        Started(3),
        text("Hello", 1),
        text(" world", 2, 3),
        *ended("stop", Usage(prompt_tokens=3, completion_tokens=3)),
    ],
    "nothing": [Started(1), *ended("stop", Usage(prompt_tokens=1))],
    "cut": [
        Started(9),
        text("On", 1),
        *ended("length", Usage(prompt_tokens=9, completion_tokens=1, cached_tokens=8)),
    ],
    "calls": [
        Started(2),
        ReasoningDelta(0, "Let me ", (1,)),
        ReasoningDelta(0, "look.", (2,)),
        ToolCallStarted(choice=0, index=0, id="call_a", name="find"),
        ToolCallDelta(0, 0, '{"word":'),
        ToolCallDelta(0, 0, ' "x"}'),
        ToolCallStarted(choice=0, index=1, id="call_b", name="stop"),
        ToolCallDelta(0, 1, "{}"),
        *ended("tool_calls", Usage(prompt_tokens=2, completion_tokens=9)),
    ],
    # A token may end in the middle of a character, and then has no text of its own yet.
    "characters": [
        Started(2),
        text("", 1),
        text('„é"\\\n\t\u2028🦜', 2),
        text("<|end|>", 3),
        *ended("stop", Usage(prompt_tokens=2, completion_tokens=3)),
    ],
}
HEADING = Heading(id="chatcmpl-0123456789ab", created=1_767_225_600, model="mlxm/tiny")


def check_golden(name: str, got: bytes) -> None:
    """Compare with the file; MLXM_WRITE_GOLDEN=1 writes it anew, for a person to read the difference."""
    path = GOLDEN / name
    if WRITES_GOLDEN:
        path.write_bytes(got)
    assert got == path.read_bytes()


def stream(events: list[Event], *, include_usage: bool) -> bytes:
    """The bytes of a whole stream."""
    writer = ChunkWriter(HEADING, include_usage=include_usage)
    return b"".join(writer.write(event) for event in events) + sse.DONE


@pytest.mark.parametrize("story", STORIES)
def test_whole_answer_is_as_ever(story: str) -> None:
    """The bytes of a whole answer are a contract."""
    check_golden(f"{story}.json", msgspec.json.format(openai_chat_answers.completion(HEADING, STORIES[story])) + b"\n")


@pytest.mark.parametrize("story", STORIES)
@pytest.mark.parametrize("include_usage", [True, False], ids=["usage", "plain"])
def test_stream_is_as_ever(story: str, include_usage: bool) -> None:  # noqa: FBT001  # pytest passes it by name
    """The bytes of a stream are a contract."""
    name = f"{story}.usage.sse" if include_usage else f"{story}.sse"
    check_golden(name, stream(STORIES[story], include_usage=include_usage))


@pytest.mark.parametrize("story", STORIES)
def test_stream_and_whole_answer_say_the_same(story: str) -> None:
    """Text and finish reason do not depend on how they are sent, and the role comes once, first."""
    whole = msgspec.json.decode(openai_chat_answers.completion(HEADING, STORIES[story]))["choices"][0]
    lines = stream(STORIES[story], include_usage=False).decode().split("\n\n")
    chunks = [msgspec.json.decode(line.removeprefix("data: "))["choices"][0] for line in lines[:-2]]
    assert "".join(chunk["delta"].get("content", "") for chunk in chunks) == (whole["message"]["content"] or "")
    assert [chunk["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + [whole["finish_reason"]]
    assert ["role" in chunk["delta"] for chunk in chunks] == [True] + [False] * (len(chunks) - 1)


def test_each_choice_has_its_own_beginning() -> None:
    """The role comes once for each of them, and the whole answer keeps them apart."""
    events: list[Event] = [
        Started(1),
        TextDelta(choice=1, text="b"),
        TextDelta(choice=0, text="a"),
        ChoiceEnded(choice=1, reason="length"),
        ChoiceEnded(choice=0, reason="stop"),
        Ended(Usage()),
    ]
    writer = ChunkWriter(HEADING, include_usage=False, num_choices=2)
    chunks = [
        msgspec.json.decode(line.removeprefix("data: "))["choices"][0]
        for line in b"".join(map(writer.write, events)).decode().split("\n\n")[:-1]
    ]
    assert [(chunk["index"], chunk["delta"].get("role")) for chunk in chunks[:3]] == [
        (0, "assistant"),
        (1, "assistant"),
        (1, None),
    ]
    whole = msgspec.json.decode(openai_chat_answers.completion(HEADING, events))["choices"]
    assert [(each["index"], each["message"]["content"], each["finish_reason"]) for each in whole] == [
        (0, "a", "stop"),
        (1, "b", "length"),
    ]


LIKELY = TokenLogprobs(7, b"a", -0.5, (Likely(7, b"a", -0.5), Likely(8, b"\xf0\x9f", float("-inf"))))
SHOWN: dict[str, Any] = {
    "token": "a",
    "logprob": -0.5,
    "bytes": [97],
    "top_logprobs": [
        {"token": "a", "logprob": -0.5, "bytes": [97]},
        {"token": "bytes:\\xf0\\x9f", "logprob": -9999.0, "bytes": [240, 159]},
    ],
}


def test_logprobs_stand_beside_their_text() -> None:
    """In the whole answer and in the stream; also for a token that has no text of its own yet."""
    events: list[Event] = [
        Started(1),
        TextDelta(choice=0, text="a", token_ids=(7,), logprobs=(LIKELY,)),
        TextDelta(choice=0, text="", token_ids=(7,), logprobs=(LIKELY,)),
        *ended("stop", Usage()),
    ]
    whole = msgspec.json.decode(openai_chat_answers.completion(HEADING, events, has_logprobs=True))
    assert whole["choices"][0]["logprobs"] == {"content": [SHOWN, SHOWN], "refusal": None}
    lines = stream(events, include_usage=False).decode().split("\n\n")
    chunks = [msgspec.json.decode(line.removeprefix("data: "))["choices"][0] for line in lines[1:3]]
    assert [chunk["logprobs"]["content"] for chunk in chunks] == [[SHOWN], [SHOWN]]
    assert [chunk["delta"]["content"] for chunk in chunks] == ["a", ""]


@pytest.mark.parametrize(("raw", "shown"), [(b" caf\xc3\xa9", " café"), (b"", ""), (b"\xc3", "bytes:\\xc3")])
def test_tokens_are_shown_as_text_where_they_are_text(raw: bytes, shown: str) -> None:
    """Half a character is shown as its bytes, so that two of them never look alike."""
    assert shown_token(raw) == shown


def test_ids_come_from_the_request() -> None:
    """An answer can be found by the id of its request."""
    heading = Heading.of("chatcmpl", "req_0123456789ab", "mlxm/tiny", 5)
    assert heading == Heading(id="chatcmpl-0123456789ab", created=5, model="mlxm/tiny")
