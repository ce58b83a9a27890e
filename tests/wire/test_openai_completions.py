from typing import Any

import msgspec
import pytest

from mlxm.errors import InvalidRequest, UnsupportedParameter
from mlxm.types import ChoiceEnded, CompletionRequest, Ended, Event, Likely, Started, TextDelta, TokenLogprobs, Usage
from mlxm.wire import openai_completions, openai_completions_answers
from mlxm.wire.openai_completions import read_request
from mlxm.wire.openai_completions_answers import ChunkWriter, Wanted, completion
from mlxm.wire.openai_usage import Heading

HEADING = Heading(id="cmpl-0123456789ab", created=1_767_225_600, model="mlxm/tiny")


def body(**fields: Any) -> bytes:
    """A request of which some fields are given."""
    return msgspec.json.encode({"model": "mlxm/tiny", "prompt": "Once", **fields})


def asked(**fields: Any) -> tuple[CompletionRequest, ...]:
    """The neutral form of such a request."""
    return read_request(body(**fields)).request.to_completions("req_1")


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a", ["a"]),
        ("", [""]),
        (["a"], ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [(1, 2)]),
        ([[1, 2], [3]], [(1, 2), (3,)]),
    ],
)
def test_prompts_come_in_four_shapes(prompt: Any, expected: list[Any]) -> None:
    """A text, texts, token ids, or lists of them; each is a request of its own."""
    requests = asked(prompt=prompt)
    assert [request.prompt for request in requests] == expected
    ids = [request.request_id for request in requests]
    assert ids == (["req_1"] if len(expected) == 1 else ["req_1.0", "req_1.1"])


def test_every_acting_field_arrives() -> None:
    """What this kind of request has of its own."""
    (request,) = asked(suffix="end", echo=True, logprobs=3, n=2, best_of=4, max_tokens=0, temperature=0.5, stop="x")
    assert (request.suffix, request.echoes, request.num_logprobs, request.num_choices) == ("end", True, 3, 4)
    assert (request.max_tokens, request.sampling.temperature, request.stop) == (0, 0.5, ("x",))


def test_what_is_left_out() -> None:
    """The length has a default here, as it always had."""
    (request,) = asked()
    assert (request.max_tokens, request.suffix, request.echoes, request.num_logprobs) == (16, None, False, None)
    assert asked(suffix="")[0].suffix is None
    assert asked(best_of=2)[0].num_logprobs == 0


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": ["a", [1]]}, "prompt"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": [1.5]}, "prompt[0]"),
        ({"prompt": ["a"] * 1025}, "prompt"),
        ({"prompt": ["a"] * 20, "n": 128}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": 21}, "logprobs"),
        ({"n": 2, "best_of": 1}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"stream_options": {}}, "stream_options"),
    ],
)
def test_misfits_name_the_parameter(fields: dict[str, Any], param: str) -> None:
    """Mixtures, emptiness, and too much of anything."""
    with pytest.raises(InvalidRequest) as caught:
        asked(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize("fields", [{"messages": []}, {"tools": []}, {"store": True}, {"promt": "a"}])
def test_what_cannot_act_is_refused_by_name(fields: dict[str, Any]) -> None:
    """Fields of conversations too: a text has no tools."""
    with pytest.raises(UnsupportedParameter) as caught:
        read_request(body(**fields))
    assert caught.value.param in fields


def test_tolerated_fields_are_told() -> None:
    """As with chats."""
    assert read_request(body(user="me")).ignored == ("user",)


def test_tables_do_not_overlap() -> None:
    """A field acts, is a no-op, or is tolerated: one of these."""
    acting = set(openai_completions.TextCompletionRequest.__struct_fields__)
    assert not acting & openai_completions.NO_OPS.keys()
    assert not acting & openai_completions.TOLERATED


# ── answers ──────────────────────────────────────────────────────────────────────────────────────


def token(token_id: int, raw: bytes, logprob: float | None, *top: Likely) -> TokenLogprobs:
    """A token and its logprob."""
    return TokenLogprobs(token_id, raw, logprob, top)


def test_whole_answer() -> None:
    """The prompt's first token has no logprob; a character of two tokens begins where its first one does."""
    events: list[Event] = [
        Started(2),
        TextDelta(
            choice=0, text="aé", logprobs=(token(1, b"a", None), token(2, "é".encode(), -1.0, Likely(3, b"x", -0.5)))
        ),
        TextDelta(choice=0, text="", token_ids=(4,), logprobs=(token(4, b"\xc3", -2.0),)),
        TextDelta(choice=0, text="ü!", token_ids=(5, 6), logprobs=(token(5, b"\xbc", -0.1), token(6, b"!", -0.2))),
        ChoiceEnded(choice=0, reason="length"),
        Ended(Usage(prompt_tokens=2, completion_tokens=3)),
    ]
    answer = msgspec.json.decode(completion(HEADING, events, Wanted(has_logprobs=True)))
    assert answer == {
        "id": "cmpl-0123456789ab",
        "object": "text_completion",
        "created": 1_767_225_600,
        "model": "mlxm/tiny",
        "choices": [
            {
                "index": 0,
                "text": "aéü!",
                "logprobs": {
                    "tokens": ["a", "é", "bytes:\\xc3", "bytes:\\xbc", "!"],
                    "token_logprobs": [None, -1.0, -2.0, -0.1, -0.2],
                    "top_logprobs": [
                        None,
                        {"x": -0.5, "é": -1.0},
                        {"bytes:\\xc3": -2.0},
                        {"bytes:\\xbc": -0.1},
                        {"!": -0.2},
                    ],
                    "text_offset": [0, 1, 2, 2, 3],
                },
                "finish_reason": "length",
            }
        ],
        "usage": {
            "prompt_tokens": 2,
            "completion_tokens": 3,
            "total_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }


def test_the_likeliest_answers_are_kept() -> None:
    """Of three to each of two prompts the best two, the best one first; longer is not worse."""
    means = [-3.0, -1.0, -2.0, -0.5, -0.7, -0.6]
    events: list[Event] = [Started(1)]
    for choice, mean in enumerate(means):
        tokens = (token(1, b"t", mean),) * (1 + choice % 2)
        events += [TextDelta(choice=choice, text=f"{mean}", logprobs=tokens), ChoiceEnded(choice=choice, reason="stop")]
    answer = msgspec.json.decode(completion(HEADING, [*events, Ended(Usage())], Wanted(num_tried=3, num_choices=2)))
    assert [(each["index"], each["text"]) for each in answer["choices"]] == [
        (0, "-1.0"),
        (1, "-2.0"),
        (2, "-0.5"),
        (3, "-0.6"),
    ]
    assert answer["choices"][0]["logprobs"] is None


def test_an_answer_without_a_token_is_an_answer() -> None:
    """It ends at once."""
    answer = msgspec.json.decode(
        completion(HEADING, [Started(1), ChoiceEnded(choice=0, reason="stop"), Ended(Usage())], Wanted(num_tried=1))
    )
    assert answer["choices"] == [{"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}]


@pytest.mark.parametrize("include_usage", [True, False])
def test_stream(include_usage: bool) -> None:  # noqa: FBT001  # named by pytest
    """Pieces, the reason, and the usage when it is wanted; offsets go on from piece to piece."""
    events: list[Event] = [
        Started(1),
        TextDelta(choice=0, text="ab", logprobs=(token(1, b"ab", -1.0),)),
        TextDelta(choice=1, text="x"),
        TextDelta(choice=0, text="c", logprobs=(token(2, b"c", float("-inf")),)),
        TextDelta(choice=0, text=""),
        ChoiceEnded(choice=0, reason="stop"),
        Ended(Usage(prompt_tokens=1, completion_tokens=2)),
    ]
    writer = ChunkWriter(HEADING, include_usage=include_usage)
    lines = b"".join(map(writer.write, events)).decode().split("\n\n")[:-1]
    chunks = [msgspec.json.decode(line.removeprefix("data: ")) for line in lines]
    told = [(each["index"], each["text"], each["finish_reason"]) for chunk in chunks for each in chunk["choices"]]
    assert told == [(0, "ab", None), (1, "x", None), (0, "c", None), (0, "", "stop")]
    assert chunks[2]["choices"][0]["logprobs"]["text_offset"] == [2]
    assert chunks[2]["choices"][0]["logprobs"]["token_logprobs"] == [openai_completions_answers.finite(float("-inf"))]
    assert [chunk.get("usage", "none") is None for chunk in chunks[:4]] == [include_usage] * 4
    assert len(chunks) == (5 if include_usage else 4)
    if include_usage:
        assert (chunks[-1]["choices"], chunks[-1]["usage"]["total_tokens"]) == ([], 3)
