import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from mlxm.errors import ContextTooLong, InternalError, MlxmError, ModelNotFound, NotAuthenticated, Overloaded, TimedOut
from mlxm.testing.backends import ECHO_MODEL, EchoBackend, ScriptedBackend, Step
from mlxm.types import ChoiceEnded, Ended, ReasoningDelta, Started, TextDelta, Usage
from tests.server.harness import serving

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello there"}]
TOOL: Any = {"type": "function", "function": {"name": "say", "parameters": {"type": "object"}}}


def with_sdk(
    scenario: Callable[[openai.AsyncOpenAI], Awaitable[None]], backend: ScriptedBackend | None = None
) -> ScriptedBackend:
    """Run a scenario with the SDK in front of a server; what was asked of the backend."""
    made = EchoBackend() if backend is None else backend

    async def run() -> None:
        async with serving(made) as server, server.sdk() as client:
            await scenario(client)

    asyncio.run(run())
    return made


def test_chat_with_choices_and_logprobs() -> None:
    """The SDK's own types hold all of it."""

    async def scenario(client: openai.AsyncOpenAI) -> None:
        answer = await client.chat.completions.create(
            model=ECHO_MODEL, messages=HELLO, n=2, logprobs=True, top_logprobs=1, max_completion_tokens=1
        )
        assert [(each.index, each.message.content, each.finish_reason) for each in answer.choices] == [
            (0, "Hello", "length"),
            (1, "Hello", "length"),
        ]
        logprobs = answer.choices[1].logprobs
        assert logprobs is not None
        assert logprobs.content is not None
        (token,) = logprobs.content
        assert (token.token, token.logprob, token.bytes) == ("Hello", -0.5, list(b"Hello"))
        assert [each.token for each in token.top_logprobs] == ["Hello"]
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 2

    with_sdk(scenario)


def test_stream_with_choices() -> None:
    """Put together by index, it says what the whole answer says."""

    async def scenario(client: openai.AsyncOpenAI) -> None:
        texts = {0: "", 1: ""}
        roles = []
        usages = []
        stream = await client.chat.completions.create(
            model=ECHO_MODEL, messages=HELLO, n=2, stream=True, stream_options={"include_usage": True}
        )
        async for chunk in stream:
            usages.append(chunk.usage)
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
                roles += [choice.delta.role] if choice.delta.role else []
        assert texts == {0: "Hello there", 1: "Hello there"}
        assert roles == ["assistant", "assistant"]
        assert usages[-1] is not None
        assert usages[:-1] == [None] * (len(usages) - 1)

    with_sdk(scenario)


def test_tools_are_called() -> None:
    """Whole and streamed; the SDK's own helper puts the pieces together."""

    async def scenario(client: openai.AsyncOpenAI) -> None:
        whole = await client.chat.completions.create(
            model=ECHO_MODEL, messages=HELLO, tools=[TOOL], tool_choice="required"
        )
        assert (whole.choices[0].finish_reason, whole.choices[0].message.content) == ("tool_calls", None)
        calls = whole.choices[0].message.tool_calls
        assert calls is not None
        assert calls[0].type == "function"
        async with client.chat.completions.stream(
            model=ECHO_MODEL, messages=HELLO, tools=[TOOL], tool_choice="required"
        ) as stream:
            final = await stream.get_final_completion()
        streamed = final.choices[0].message.tool_calls
        assert streamed is not None
        assert streamed[0].function.name == calls[0].function.name == "say"
        assert json.loads(streamed[0].function.arguments) == json.loads(calls[0].function.arguments)
        assert streamed[0].id == calls[0].id

    with_sdk(scenario)


def test_reasoning_is_apart_from_the_answer() -> None:
    """Clients read it under this name."""
    script: list[Step] = [
        Started(1),
        ReasoningDelta(0, "Hm.", (1,)),
        TextDelta(0, "Yes.", (2,)),
        ChoiceEnded(0, "stop"),
        Ended(Usage(prompt_tokens=1, completion_tokens=2)),
    ]

    async def scenario(client: openai.AsyncOpenAI) -> None:
        answer = await client.chat.completions.create(model="m", messages=HELLO, reasoning_effort="low")
        message = answer.choices[0].message
        assert (message.content, message.model_extra) == ("Yes.", {"reasoning_content": "Hm."})

    with_sdk(scenario, ScriptedBackend(lambda _: script))


def test_completions_of_several_prompts() -> None:
    """Each prompt has its choices; echo and logprobs as evaluations want them."""

    async def scenario(client: openai.AsyncOpenAI) -> None:
        answer = await client.completions.create(
            model=ECHO_MODEL, prompt=["a b", "c"], n=2, echo=True, logprobs=1, max_tokens=5
        )
        assert [(each.index, each.text) for each in answer.choices] == [
            (0, "a b a b"),
            (1, "a b a b"),
            (2, "c c"),
            (3, "c c"),
        ]
        logprobs = answer.choices[0].logprobs
        assert logprobs is not None
        assert logprobs.tokens == ["a", " b"]
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 6)
        best = await client.completions.create(model=ECHO_MODEL, prompt=[[1, 2], [3]], best_of=3)
        assert [each.text for each in best.choices] == ["1 2", "3"]

    backend = with_sdk(scenario)
    assert {request.num_choices for request in backend.requests} == {2, 3}


def test_completions_as_a_stream() -> None:
    """The pieces of several prompts come as they are made."""

    async def scenario(client: openai.AsyncOpenAI) -> None:
        texts = {0: "", 1: ""}
        stream = await client.completions.create(model=ECHO_MODEL, prompt=["a b", "c d e"], stream=True)
        async for chunk in stream:
            for choice in chunk.choices:
                texts[choice.index] += choice.text
        assert texts == {0: "a b", 1: "c d e"}

    with_sdk(scenario)


def test_models_have_slashes() -> None:
    """A model is found by its whole name."""

    async def scenario(client: openai.AsyncOpenAI) -> None:
        listed = await client.models.list()
        assert [model.id for model in listed.data] == [ECHO_MODEL]
        assert (await client.models.retrieve(ECHO_MODEL)).id == ECHO_MODEL
        with pytest.raises(openai.NotFoundError) as caught:
            await client.models.retrieve("a/b/c")
        assert caught.value.code == "model_not_found"

    with_sdk(scenario)


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (ContextTooLong("m", param="messages"), openai.BadRequestError, "context_length_exceeded"),
        (NotAuthenticated("m"), openai.AuthenticationError, "not_authenticated"),
        (ModelNotFound("m", param="model"), openai.NotFoundError, "model_not_found"),
        (Overloaded("m"), openai.RateLimitError, "overloaded"),
        (InternalError("m"), openai.InternalServerError, "internal_error"),
        (TimedOut("m"), openai.InternalServerError, "timed_out"),
    ],
)
def test_errors_are_the_sdks_own(error: MlxmError, kind: type[openai.APIStatusError], code: str) -> None:
    """With the code, the parameter, and the request's id."""

    async def scenario(client: openai.AsyncOpenAI) -> None:
        with pytest.raises(kind) as caught:
            await client.chat.completions.create(model="m", messages=HELLO)
        assert (caught.value.code, caught.value.param) == (code, error.param)
        assert caught.value.request_id is not None
        assert caught.value.request_id.startswith("req_")

    with_sdk(scenario, ScriptedBackend(lambda _: [error]))


def test_an_error_in_mid_stream_is_raised() -> None:
    """And not taken for the end of the answer."""
    script: list[Step] = [Started(1), TextDelta(0, "a"), Overloaded("too much")]

    async def scenario(client: openai.AsyncOpenAI) -> None:
        stream = await client.chat.completions.create(model="m", messages=HELLO, stream=True)
        with pytest.raises(openai.APIError, match="too much"):
            async for _ in stream:
                pass

    with_sdk(scenario, ScriptedBackend(lambda _: script))


def test_batch_routes_have_low_priority() -> None:
    """The same requests and answers, behind all others."""

    async def run() -> None:
        backend = EchoBackend()
        async with serving(backend) as server:
            client = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{server.port}/v1/batch", api_key="none")
            async with client:
                chat = await client.chat.completions.create(model=ECHO_MODEL, messages=HELLO)
                text = await client.completions.create(model=ECHO_MODEL, prompt="a")
            await server.chat()
            assert (chat.choices[0].message.content, text.choices[0].text) == ("Hello there", "a")
            assert [request.priority for request in backend.requests] == [2, 2, 1]

    asyncio.run(run())


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_tokens_are_counted(prefix: str) -> None:
    """There and back."""

    async def run() -> None:
        async with serving(EchoBackend()) as server:
            asked = {"model": ECHO_MODEL, "prompt": "hé"}
            counted = (await server.http.post(f"{prefix}/tokenize", json=asked)).json()
            assert counted == {"count": 3, "max_model_len": 4096, "tokens": [0, 104, 233], "token_strs": None}
            bare = (await server.http.post(f"{prefix}/tokenize", json={**asked, "add_special_tokens": False})).json()
            assert bare["tokens"] == [104, 233]
            chat = {"model": ECHO_MODEL, "messages": HELLO}
            assert (await server.http.post(f"{prefix}/tokenize", json=chat)).json()["count"] == 12
            back = {"model": ECHO_MODEL, "tokens": [104, 233]}
            assert (await server.http.post(f"{prefix}/detokenize", json=back)).json() == {"prompt": "hé"}
            wrong = await server.http.post(f"{prefix}/detokenize", json={**back, "tokens": [2**31 - 1]})
            assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "tokens")

    asyncio.run(run())
