import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.e2e.conftest import MODEL, ServerProcess

NUM_STREAMS = 32
SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": ["b", "c"]}},
    "required": ["a"],
    "additionalProperties": False,
}


def says(text: str) -> list[ChatCompletionMessageParam]:
    """A conversation of one message."""
    return [{"role": "user", "content": text}]


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    """A short answer."""
    return client.chat.completions.create(**{"model": MODEL, "messages": says("Hello"), "max_tokens": 8, **fields})


def test_parallel_streams_say_what_they_say_alone(client: openai.OpenAI) -> None:
    """Chance belongs to the request: who runs beside it changes nothing."""

    def stream(number: int) -> str:
        chunks = ask(client, messages=says(f"number {number}"), temperature=0.8, seed=number, stream=True)
        return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)

    alone = [stream(number) for number in range(NUM_STREAMS)]
    with ThreadPoolExecutor(NUM_STREAMS) as pool:
        assert list(pool.map(stream, range(NUM_STREAMS))) == alone
    assert len(set(alone)) > NUM_STREAMS / 2


def test_logprobs_are_those_of_the_answer(client: openai.OpenAI) -> None:
    """Joined they are its text; greedy, each token is the likeliest one."""
    choice = ask(client, temperature=0, logprobs=True, top_logprobs=2).choices[0]
    tokens = choice.logprobs.content
    assert b"".join(bytes(token.bytes) for token in tokens).decode() == choice.message.content
    assert [token.top_logprobs[0].token for token in tokens] == [token.token for token in tokens]
    assert all(token.logprob <= 0 for token in tokens)


def test_answers_look_as_they_have_to(client: openai.OpenAI) -> None:
    """Also those of a model that has learned nothing."""
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    answer = ask(client, response_format=form, max_tokens=64).choices[0]
    assert json.loads(answer.message.content)["a"] in ("b", "c")
    assert answer.finish_reason == "stop"
    assert ask(client, extra_body={"guided_choice": ["yes", "no"]}).choices[0].message.content in ("yes", "no")


def test_a_text_is_scored(client: openai.OpenAI) -> None:
    """As evaluations do it: several prompts, their own tokens, no answer."""
    answer = client.completions.create(model=MODEL, prompt=["Hello you", "one"], max_tokens=0, echo=True, logprobs=1)
    assert [choice.text for choice in answer.choices] == ["Hello you", "one"]
    for choice in answer.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.token_logprobs is not None
        assert choice.logprobs.token_logprobs[0] is None
        assert all(logprob <= 0 for logprob in choice.logprobs.token_logprobs[1:])
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 0


def test_models_and_tokens(server: ServerProcess, client: openai.OpenAI) -> None:
    """The context's length is known, and how much of it a conversation takes."""
    assert (client.models.retrieve(MODEL).model_extra or {})["context_length"] == 8192
    with httpx.Client(base_url=server.url) as http:
        counted = http.post("/tokenize", json={"model": MODEL, "messages": says("Hello")}).json()
        back = http.post("/detokenize", json={"model": MODEL, "tokens": counted["tokens"]}).json()
    assert counted["count"] == ask(client).usage.prompt_tokens
    assert "Hello" in back["prompt"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"max_tokens": 100_000}, "messages"),
        ({"extra_body": {"guided_regex": "["}}, None),
    ],
)
def test_what_only_the_model_can_judge_is_refused_too(
    client: openai.OpenAI, fields: dict[str, Any], param: str | None
) -> None:
    """With 400, and the next request is served."""
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **fields)
    assert param is None or caught.value.param == param
    assert ask(client).choices[0].message.content
