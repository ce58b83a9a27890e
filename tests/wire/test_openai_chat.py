import os
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import msgspec
import pytest

from mlxm.errors import InvalidRequest, UnsupportedParameter
from mlxm.types import ChoiceEnded, Ended, Event, FinishReason, Started, TextDelta, TextPart, Usage
from mlxm.wire import openai_chat, sse
from mlxm.wire.openai_chat import ChatCompletionRequest, ChunkWriter, Heading, read_request

GOLDEN = Path(__file__).parent / "golden" / "openai_chat"
WRITES_GOLDEN = os.environ.get("MLXM_WRITE_GOLDEN") == "1"
MINIMAL: dict[str, Any] = {"model": "mlxm/tiny", "messages": [{"role": "user", "content": "Hi"}]}


def body(**fields: Any) -> bytes:
    """A request of which some fields are given."""
    return msgspec.json.encode({**MINIMAL, **fields})


# ── requests ─────────────────────────────────────────────────────────────────────────────────────


def test_minimal_request() -> None:
    """What is left out stays the model's own choice."""
    chat = read_request(body()).request.to_chat("req_1")
    assert (chat.request_id, chat.model, chat.max_tokens, chat.stop) == ("req_1", "mlxm/tiny", None, ())
    assert (chat.sampling.temperature, chat.sampling.seed) == (None, None)
    assert [(message.role, message.content) for message in chat.messages] == [("user", (TextPart("Hi"),))]


def test_every_acting_field_arrives() -> None:
    """Each field that acts reaches the neutral request."""
    asked = read_request(
        body(max_completion_tokens=7, temperature=0, seed=-3, stop=["a", "b"], stream=True, stream_options={})
    )
    chat = asked.request.to_chat("req_1")
    assert (chat.max_tokens, chat.sampling.temperature, chat.sampling.seed, chat.stop) == (7, 0.0, -3, ("a", "b"))
    assert asked.request.stream


@pytest.mark.parametrize(("stop", "expected"), [("x", ("x",)), (["x"], ("x",)), ([], ()), (None, ())])
def test_stop_takes_one_or_more(stop: Any, expected: tuple[str, ...]) -> None:
    """A string is a list of one."""
    assert read_request(body(stop=stop)).request.to_chat("r").stop == expected


def test_content_may_come_in_parts() -> None:
    """Parts keep their order, roles and names theirs."""
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    messages = [
        {"role": "system", "content": "s"},
        {"role": "developer", "content": "d", "name": "Ada"},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": ""},
    ]
    chat = read_request(body(messages=messages)).request.to_chat("r")
    assert [message.role for message in chat.messages] == ["system", "developer", "user", "assistant"]
    assert chat.messages[1].name == "Ada"
    assert chat.messages[2].content == (TextPart("one"), TextPart("two"))


def test_both_limits_may_be_equal() -> None:
    """The old and the new name for the limit may come together when they say the same."""
    assert read_request(body(max_tokens=5, max_completion_tokens=5)).request.to_chat("r").max_tokens == 5
    assert read_request(body(max_tokens=5)).request.to_chat("r").max_tokens == 5


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": 5}, "model"),
        ({"model": ""}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "", "x": 1}]}]},
            "messages[0].content[0]",
        ),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": "12"}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 10**12}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"seed": 2**63}, "seed"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": [None]}, "stop[0]"),
        ({"stop": 5}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stream": 1}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
    ],
)
def test_misfits_name_the_parameter(fields: dict[str, Any], param: str) -> None:
    """Every number has bounds, nothing is converted, and the error says which field is wrong."""
    with pytest.raises(InvalidRequest) as caught:
        read_request(body(**fields))
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"n": "1"}, "n"),
        ({"top_p": 0.5}, "top_p"),
        ({"tools": [{}]}, "tools"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 0}, "top_logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"store": True}, "store"),
        ({"temprature": 0.5}, "temprature"),
        ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "user", "content": "x", "contnt": 1}]}, "messages[0].contnt"),
    ],
)
def test_what_cannot_act_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    """Nothing is dropped in silence."""
    with pytest.raises(UnsupportedParameter) as caught:
        read_request(body(**fields))
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in openai_chat.NO_OPS.items() for value in (*values, None)]
)
def test_no_ops_pass(name: str, value: Any) -> None:
    """Values that ask for what happens anyway are taken from clients that always send them."""
    assert read_request(body(**{name: value})).ignored == ()


def test_an_answer_may_be_sent_back() -> None:
    """The message of an answer, with all its nulls, is a message of the next request."""
    answered = {
        "role": "assistant",
        "content": "Hello",
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "tool_calls": None,
    }
    assert read_request(body(messages=[answered])).request.messages[0].content == "Hello"


def test_tolerated_fields_are_told() -> None:
    """What may be sent and changes nothing is told, so that the answer can name it."""
    asked = read_request(body(user="me", metadata={"a": "b"}, safety_identifier=None))
    assert asked.ignored == ("user", "metadata")


def test_tables_do_not_overlap() -> None:
    """A field acts, is a no-op, or is tolerated: one of these."""
    acting = set(ChatCompletionRequest.__struct_fields__)
    assert not acting & openai_chat.NO_OPS.keys()
    assert not acting & openai_chat.TOLERATED
    assert not openai_chat.TOLERATED & openai_chat.NO_OPS.keys()


def unbounded(kind: Any, path: str, bounds: msgspec.Meta | None = None) -> Iterator[str]:
    """The places in a type where a client may send as much as it likes."""
    origin = get_origin(kind)
    if origin is Annotated:
        inner, meta = get_args(kind)
        yield from unbounded(inner, path, meta)
    elif origin in (types.UnionType, typing.Union):
        for inner in get_args(kind):
            yield from unbounded(inner, path)
    elif isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        for field in msgspec.structs.fields(kind):
            yield from unbounded(field.type, f"{path}.{field.encode_name}")
    elif origin is tuple:
        yield from unbounded(get_args(kind)[0], f"{path}[]")
        yield from unbounded(tuple, path, bounds)
    elif not is_bounded(kind, bounds):
        yield f"{path}: {kind.__name__}"


def is_bounded(kind: Any, bounds: msgspec.Meta | None) -> bool:
    """Whether a type without inner types has an end."""
    if kind in (bool, type(None)) or get_origin(kind) is typing.Literal:
        return True
    if kind in (str, tuple):
        return bounds is not None and bounds.max_length is not None
    if kind in (int, float):
        return bounds is not None and bounds.ge is not None and bounds.le is not None
    return False


def test_every_field_of_a_request_is_bounded() -> None:
    """A bare number, string or list in a request is a way to ask for too much."""
    assert list(unbounded(ChatCompletionRequest, "request")) == []


def test_bounds_are_really_looked_for() -> None:
    """The walk above finds what it is for."""

    class Careless(msgspec.Struct):
        number: int
        texts: tuple[str, ...] | None = None

    assert list(unbounded(Careless, "x")) == ["x.number: int", "x.texts[]: str", "x.texts: tuple"]


# ── answers ──────────────────────────────────────────────────────────────────────────────────────


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
    check_golden(f"{story}.json", msgspec.json.format(openai_chat.completion(HEADING, STORIES[story])) + b"\n")


@pytest.mark.parametrize("story", STORIES)
@pytest.mark.parametrize("include_usage", [True, False], ids=["usage", "plain"])
def test_stream_is_as_ever(story: str, include_usage: bool) -> None:  # noqa: FBT001  # pytest passes it by name
    """The bytes of a stream are a contract."""
    name = f"{story}.usage.sse" if include_usage else f"{story}.sse"
    check_golden(name, stream(STORIES[story], include_usage=include_usage))


@pytest.mark.parametrize("story", STORIES)
def test_stream_and_whole_answer_say_the_same(story: str) -> None:
    """Text and finish reason do not depend on how they are sent, and the role comes once, first."""
    whole = msgspec.json.decode(openai_chat.completion(HEADING, STORIES[story]))["choices"][0]
    lines = stream(STORIES[story], include_usage=False).decode().split("\n\n")
    chunks = [msgspec.json.decode(line.removeprefix("data: "))["choices"][0] for line in lines[:-2]]
    assert "".join(chunk["delta"].get("content", "") for chunk in chunks) == whole["message"]["content"]
    assert [chunk["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + [whole["finish_reason"]]
    assert ["role" in chunk["delta"] for chunk in chunks] == [True] + [False] * (len(chunks) - 1)


def test_ids_come_from_the_request() -> None:
    """An answer can be found by the id of its request."""
    chat = read_request(body()).request.to_chat("req_0123456789ab")
    assert Heading.of(chat, created=5) == Heading(id="chatcmpl-0123456789ab", created=5, model="mlxm/tiny")
