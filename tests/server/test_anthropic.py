import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import anthropic
import pytest

from mlxm.errors import (
    ContextTooLong,
    InternalError,
    InvalidRequest,
    MlxmError,
    ModelNotFound,
    NotAuthenticated,
    Overloaded,
    TimedOut,
)
from mlxm.testing.backends import ECHO_MODEL, EchoBackend, ScriptedBackend, Step
from mlxm.types import (
    ChatRequest,
    ChoiceEnded,
    Ended,
    Message,
    ReasoningDelta,
    Started,
    TextDelta,
    TextPart,
    ToolCallDelta,
    ToolCallPart,
    ToolCallStarted,
    Usage,
)
from tests.server.harness import BOUND_S, Running, serving

HELLO: Any = [{"role": "user", "content": "Hello there"}]
TOOL: Any = {"name": "find", "description": "Finds.", "input_schema": {"type": "object"}}
USAGE = Usage(prompt_tokens=10, completion_tokens=4, cached_tokens=8)
CALL: list[Step] = [
    Started(10),
    ReasoningDelta(0, "I must ", (1,)),
    ReasoningDelta(0, "look.", (2,)),
    TextDelta(0, "Let me see.", (3,)),
    ToolCallStarted(choice=0, index=0, id="toolu_1", name="find"),
    ToolCallDelta(0, 0, '{"word": '),
    ToolCallDelta(0, 0, '"x"}'),
    ChoiceEnded(0, "tool_calls"),
    Ended(USAGE),
]
ANSWER: list[Step] = [
    Started(20),
    TextDelta(0, "It is there.", (1,)),
    ChoiceEnded(0, "stop"),
    Ended(Usage(prompt_tokens=20, completion_tokens=1, cached_tokens=14)),
]

Scenario = Callable[[anthropic.AsyncAnthropic], Awaitable[None]]


def sdk(server: Running, **options: Any) -> anthropic.AsyncAnthropic:
    """The real SDK; it repeats nothing by itself."""
    given: dict[str, Any] = {"api_key": "none", **options}
    return anthropic.AsyncAnthropic(base_url=f"http://127.0.0.1:{server.port}", max_retries=0, timeout=BOUND_S, **given)


def with_sdk(scenario: Scenario, backend: ScriptedBackend | None = None) -> ScriptedBackend:
    """Run a scenario with the SDK in front of a server; what was asked of the backend."""
    made = EchoBackend() if backend is None else backend

    async def run() -> None:
        async with serving(made) as server, sdk(server) as client:
            await scenario(client)

    asyncio.run(run())
    return made


def asked(backend: ScriptedBackend, number: int = -1) -> ChatRequest:
    """What a request was to the backend."""
    request = backend.requests[number]
    assert isinstance(request, ChatRequest)
    return request


def agent(request: object) -> list[Step]:
    """Calls a tool first, and answers when its result is there."""
    assert isinstance(request, ChatRequest)
    return ANSWER if any(message.role == "tool" for message in request.messages) else CALL


def test_a_whole_answer() -> None:
    """The SDK's own types hold all of it."""

    async def scenario(client: anthropic.AsyncAnthropic) -> None:
        answer = await client.messages.create(
            model=ECHO_MODEL, max_tokens=1, messages=HELLO, system="Be brief.", extra_body={"temperature": 0.5}
        )
        assert (answer.type, answer.role, answer.model) == ("message", "assistant", ECHO_MODEL)
        assert answer.id.startswith("msg_")
        assert answer.content[0].type == "text"
        assert answer.content[0].text == "Hello"
        assert (answer.stop_reason, answer.stop_sequence) == ("max_tokens", None)
        assert (answer.usage.input_tokens, answer.usage.output_tokens) == (4, 1)

    request = asked(with_sdk(scenario))
    assert request.sampling.temperature == 0.5
    assert request.messages[0] == Message(role="system", content=(TextPart("Be brief."),))


def test_an_agents_loop() -> None:
    """A thought, a call, its result, and the answer; what was cached is counted apart."""

    async def scenario(client: anthropic.AsyncAnthropic) -> None:
        turns: list[Any] = [*HELLO]
        thinking: Any = {"type": "enabled", "budget_tokens": 1024}
        call = await client.messages.create(model="m", max_tokens=2048, messages=turns, tools=[TOOL], thinking=thinking)
        assert [block.type for block in call.content] == ["thinking", "text", "tool_use"]
        assert call.stop_reason == "tool_use"
        assert (call.usage.input_tokens, call.usage.cache_read_input_tokens) == (2, 8)
        tool_use = call.content[-1]
        assert tool_use.type == "tool_use"
        assert tool_use.input == {"word": "x"}
        result = {"type": "tool_result", "tool_use_id": tool_use.id, "content": "here", "is_error": True}
        turns += [{"role": "assistant", "content": call.content}, {"role": "user", "content": [result]}]
        answer = await client.messages.create(
            model="m", max_tokens=2048, messages=turns, tools=[TOOL], thinking=thinking
        )
        assert answer.stop_reason == "end_turn"

    first, second = (
        asked(backend, number) for backend in [with_sdk(scenario, ScriptedBackend(agent))] for number in (0, 1)
    )
    assert (first.thinking.is_on, first.thinking.budget_tokens) == (True, 1024)
    assert [message.role for message in second.messages] == ["user", "assistant", "tool"]
    assert second.messages[1].content[-1] == ToolCallPart(id="toolu_1", name="find", arguments='{"word":"x"}')
    assert (second.messages[2].tool_call_id, second.messages[2].is_error) == ("toolu_1", True)


def test_a_stream_is_put_together_by_the_sdk() -> None:
    """Block by block, thoughts first; its snapshot is what a whole answer says."""

    async def scenario(client: anthropic.AsyncAnthropic) -> None:
        kinds = []
        async with client.messages.stream(model="m", max_tokens=99, messages=HELLO, tools=[TOOL]) as stream:
            async for event in stream:
                kinds.append(event.type)
                if event.type == "message_start":
                    assert event.message.usage.input_tokens == 10
            final = await stream.get_final_message()
        whole = await client.messages.create(model="m", max_tokens=99, messages=HELLO, tools=[TOOL])
        assert [block.model_dump() for block in final.content] == [block.model_dump() for block in whole.content]
        assert (final.stop_reason, final.usage.cache_read_input_tokens) == ("tool_use", 8)
        assert (final.usage.input_tokens, final.usage.output_tokens) == (2, 4)
        assert kinds[0] == "message_start"
        assert kinds[-1] == "message_stop"
        starts = [index for index, kind in enumerate(kinds) if kind == "content_block_start"]
        stops = [index for index, kind in enumerate(kinds) if kind == "content_block_stop"]
        assert [low < high for low, high in zip(starts, stops, strict=True)] == [True] * 3
        assert [low > high for low, high in zip(starts[1:], stops, strict=False)] == [True] * 2

    with_sdk(scenario, ScriptedBackend(lambda _: CALL))


def test_omitted_thoughts_come_back_in_their_seal() -> None:
    """A client that is shown nothing sends them back all the same, and the model reads them again."""

    async def scenario(client: anthropic.AsyncAnthropic) -> None:
        thinking: Any = {"type": "adaptive", "display": "omitted"}
        call = await client.messages.create(model="m", max_tokens=9, messages=HELLO, tools=[TOOL], thinking=thinking)
        assert call.content[0].type == "thinking"
        assert call.content[0].thinking == ""
        result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": []}
        turns: Any = [*HELLO, {"role": "assistant", "content": call.content}, {"role": "user", "content": [result]}]
        await client.messages.create(model="m", max_tokens=9, messages=turns, tools=[TOOL], thinking=thinking)

    thought = asked(with_sdk(scenario, ScriptedBackend(agent))).messages[1].content[0]
    assert thought.__struct_config__.tag == "reasoning"
    assert "look" in str(thought)


def test_stop_sequences_are_named() -> None:
    """The one that ended the answer, where the engine tells."""
    script: list[Step] = [Started(1), TextDelta(0, "a"), ChoiceEnded(0, "stop", "END"), Ended(Usage())]

    async def scenario(client: anthropic.AsyncAnthropic) -> None:
        answer = await client.messages.create(model="m", max_tokens=9, messages=HELLO, stop_sequences=["END"])
        assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "END")

    assert asked(with_sdk(scenario, ScriptedBackend(lambda _: script))).stop == ("END",)


def test_counted_tokens_are_those_used() -> None:
    """By the very same prompt, and without an answer."""

    async def scenario(client: anthropic.AsyncAnthropic) -> None:
        counted = await client.messages.count_tokens(model=ECHO_MODEL, messages=HELLO, system="Be brief.")
        assert counted.input_tokens == len("\0Be brief. Hello there")

    assert with_sdk(scenario).counts.started == 0


def test_models_in_this_dialects_shape() -> None:
    """Where its header is; page by page."""

    async def scenario(client: anthropic.AsyncAnthropic) -> None:
        listed = [model async for model in client.models.list(limit=1)]
        assert [model.id for model in listed] == [ECHO_MODEL]
        model = await client.models.retrieve(ECHO_MODEL)
        assert (model.max_input_tokens, model.created_at.year) == (4096, 1970)
        with pytest.raises(anthropic.NotFoundError):
            await client.models.retrieve("a/b")
        with pytest.raises(anthropic.BadRequestError, match="after_id"):
            await client.models.list(after_id="nothing")
        with pytest.raises(anthropic.BadRequestError, match="limit"):
            await client.models.list(limit=0)
        assert [model.id for model in (await client.models.list(before_id=ECHO_MODEL)).data] == []

    with_sdk(scenario)


@pytest.mark.parametrize(
    ("error", "kind", "name"),
    [
        (InvalidRequest("m"), anthropic.BadRequestError, "invalid_request_error"),
        (NotAuthenticated("m"), anthropic.AuthenticationError, "authentication_error"),
        (ModelNotFound("m"), anthropic.NotFoundError, "not_found_error"),
        (Overloaded("m"), anthropic.RateLimitError, "rate_limit_error"),
        (InternalError("m"), anthropic.InternalServerError, "api_error"),
        (TimedOut("m"), anthropic.InternalServerError, "timeout_error"),
    ],
)
def test_errors_are_the_sdks_own(error: MlxmError, kind: type[anthropic.APIStatusError], name: str) -> None:
    """It reads the class off the status, and the type and the request's id off the body."""

    async def scenario(client: anthropic.AsyncAnthropic) -> None:
        with pytest.raises(kind) as caught:
            await client.messages.create(model="m", max_tokens=9, messages=HELLO)
        body: Any = caught.value.body
        assert (body["type"], body["error"]["type"]) == ("error", name)
        assert caught.value.request_id == body["request_id"]

    with_sdk(scenario, ScriptedBackend(lambda _: [error]))


def test_an_error_in_a_stream() -> None:
    """What was said before stays said, and then the SDK raises."""
    script: list[Step] = [Started(1), TextDelta(0, "a", (1,)), Overloaded("too much")]

    async def scenario(client: anthropic.AsyncAnthropic) -> None:
        async with client.messages.stream(model="m", max_tokens=9, messages=HELLO) as stream:
            with pytest.raises(anthropic.APIStatusError, match="too much"):
                await stream.until_done()
        assert stream.current_message_snapshot.content[0].type == "text"
        assert stream.current_message_snapshot.content[0].text == "a"

    with_sdk(scenario, ScriptedBackend(lambda _: script))


def test_more_tokens_than_there_is_room_for() -> None:
    """Clients name the largest number they know: the answer ends where the context does, if there is room at all."""

    def script(request: object) -> list[Step]:
        assert isinstance(request, ChatRequest)
        is_full = len(request.messages) > 1
        return [ContextTooLong("no room")] if is_full or request.max_tokens is not None else ANSWER

    async def scenario(client: anthropic.AsyncAnthropic) -> None:
        answer = await client.messages.create(model="m", max_tokens=9999, messages=HELLO)
        assert answer.stop_reason == "end_turn"
        with pytest.raises(anthropic.BadRequestError, match="no room"):
            await client.messages.create(model="m", max_tokens=9999, messages=HELLO, system="s")

    with_sdk(scenario, ScriptedBackend(script))


def test_keys_come_in_either_header() -> None:
    """Current clients send a bearer token, older ones x-api-key."""

    async def run() -> None:
        async with serving(EchoBackend()) as server:
            for options in ({"api_key": "k"}, {"api_key": None, "auth_token": "t"}):
                async with sdk(server, **options) as client:
                    answer = await client.messages.create(model=ECHO_MODEL, max_tokens=9, messages=HELLO)
                    assert answer.stop_reason == "end_turn"
            body = {"model": ECHO_MODEL, "max_tokens": 9, "messages": HELLO}
            for headers in ({"x-api-key": "k"}, {"authorization": "Bearer k"}):
                response = await server.http.post("/v1/messages", json=body, headers=headers)
                assert response.status_code == 200

    asyncio.run(run())


def test_a_coding_clients_request_is_understood() -> None:
    """With all that it sends beside; what changes nothing is named."""
    body = {
        "model": "m",
        "max_tokens": 32000,
        "system": [
            {"type": "text", "text": "x-anthropic-billing-header: v=1; h=ab12;"},
            {"type": "text", "text": "You write code.", "cache_control": {"type": "ephemeral", "ttl": "1h"}},
        ],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}]},
            {"role": "system", "content": "The date is 2026-11-21."},
        ],
        "tools": [{**TOOL, "eager_input_streaming": True}, {"type": "web_search_20250305", "name": "web_search"}],
        "thinking": {"type": "adaptive"},
        "output_config": {"effort": "medium"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "metadata": {"user_id": "u"},
        "stream": True,
    }

    async def run() -> str:
        async with serving(backend) as server:
            headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "a-1,b-2"}
            response = await server.http.post("/v1/messages?beta=true", json=body, headers=headers)
            assert response.status_code == 200, response.text
            assert response.text.startswith("event: message_start\n")
            assert response.text.endswith('event: message_stop\ndata: {"type":"message_stop"}\n\n')
            counted = {name: value for name, value in body.items() if name not in ("max_tokens", "stream")}
            counted["model"] = ECHO_MODEL
            again = await server.http.post("/v1/messages/count_tokens?beta=true", json=counted, headers=headers)
            assert again.json()["input_tokens"] > 0
            assert again.headers["x-mlxm-ignored"] == response.headers["x-mlxm-ignored"]
            return response.headers["x-mlxm-ignored"]

    backend = ScriptedBackend(lambda _: ANSWER)
    assert set(asyncio.run(run()).split(", ")) == {
        "context_management",
        "metadata",
        "system[].x-anthropic-billing-header",
        "tools[1].web_search_20250305",
        "tools[].eager_input_streaming",
    }
    request = asked(backend)
    assert [message.role for message in request.messages] == ["system", "user", "system"]
    assert request.messages[0].content == (TextPart("You write code."),)
    assert (request.thinking.is_on, request.thinking.effort) == (True, "medium")
    assert [tool.name for tool in request.tools] == ["find"]


def test_a_silent_stream_pings() -> None:
    """In this dialect's way, so that nobody takes it for dead."""

    async def run() -> None:
        from mlxm.server.limits import Limits

        release = asyncio.Event()
        script: list[Step] = [release.wait, *ANSWER]
        limits = Limits(keep_alive_s=0.05)
        async with serving(ScriptedBackend(lambda _: script), limits=limits) as server:
            body = {"model": "m", "max_tokens": 9, "messages": HELLO, "stream": True}
            async with server.http.stream("POST", "/v1/messages", json=body) as response:
                lines = response.aiter_lines()
                assert await anext(lines) == "event: ping"
                assert json.loads((await anext(lines)).removeprefix("data: ")) == {"type": "ping"}
                release.set()
                assert "event: message_stop" in [line async for line in lines]

    asyncio.run(run())
