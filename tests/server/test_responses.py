import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from mlxm.errors import ContextTooLong, InternalError, MlxmError, ModelNotFound, NotAuthenticated, Overloaded
from mlxm.store.db import Database
from mlxm.testing.backends import ECHO_MODEL, EchoBackend, ScriptedBackend, Step
from mlxm.types import (
    ChatRequest,
    ChoiceEnded,
    Ended,
    Message,
    ReasoningDelta,
    ReasoningPart,
    Started,
    TextDelta,
    TextPart,
    ToolCallDelta,
    ToolCallPart,
    ToolCallStarted,
    Usage,
)
from tests.server.harness import serving, until

TOOL: Any = {"type": "function", "name": "find", "parameters": {"type": "object"}, "strict": False}
USAGE = Usage(prompt_tokens=10, completion_tokens=4, cached_tokens=8)
CALL: list[Step] = [
    Started(10),
    ReasoningDelta(0, "I must ", (1,)),
    ReasoningDelta(0, "look.", (2,)),
    TextDelta(0, "Let me see.", (3,)),
    ToolCallStarted(choice=0, index=0, id="call_1", name="find"),
    ToolCallDelta(0, 0, '{"word": '),
    ToolCallDelta(0, 0, '"x"}'),
    ToolCallStarted(choice=0, index=1, id="call_2", name="find"),
    ToolCallDelta(0, 1, "{}"),
    ChoiceEnded(0, "tool_calls"),
    Ended(USAGE),
]
ANSWER: list[Step] = [Started(20), TextDelta(0, "It is there.", (1,)), ChoiceEnded(0, "stop"), Ended(USAGE)]
# The fields that Open Responses requires of every response.
FIELDS = {
    *("id", "object", "created_at", "completed_at", "status", "incomplete_details", "model", "previous_response_id"),
    *("instructions", "output", "error", "tools", "tool_choice", "truncation", "parallel_tool_calls", "text"),
    *("top_p", "presence_penalty", "frequency_penalty", "top_logprobs", "temperature", "reasoning", "user", "usage"),
    *("max_output_tokens", "max_tool_calls", "store", "background", "service_tier", "metadata", "safety_identifier"),
    "prompt_cache_key",
}

Scenario = Callable[[openai.AsyncOpenAI], Awaitable[None]]


def agent(request: object) -> list[Step]:
    """Calls a tool first, and answers when its result is there."""
    assert isinstance(request, ChatRequest)
    return ANSWER if any(message.role == "tool" for message in request.messages) else CALL


def with_sdk(
    scenario: Scenario, folder: Path | None = None, backend: ScriptedBackend | None = None, **options: Any
) -> ScriptedBackend:
    """Run a scenario with the SDK in front of a server, which keeps responses in `folder`."""
    made = EchoBackend() if backend is None else backend

    async def run() -> None:
        if folder is None:
            async with serving(made, **options) as server, server.sdk() as client:
                await scenario(client)
            return
        async with (
            await Database.open(folder / "mlxm.db") as database,
            serving(made, database=database, **options) as server,
            server.sdk() as client,
        ):
            await scenario(client)

    asyncio.run(run())
    return made


def asked(backend: ScriptedBackend, number: int = -1) -> ChatRequest:
    """What a request was to the backend."""
    request = backend.requests[number]
    assert isinstance(request, ChatRequest)
    return request


def test_a_whole_answer_has_every_field() -> None:
    """Those without a value too; and the SDK's own types hold all of it."""

    async def scenario(client: openai.AsyncOpenAI) -> None:
        answer = await client.responses.create(
            model=ECHO_MODEL, input="Hello there", instructions="Be brief.", temperature=0.5, metadata={"a": "b"}
        )
        assert FIELDS.issubset(answer.model_dump())
        assert (answer.output_text, answer.status, answer.error) == ("Hello there", "completed", None)
        assert (answer.instructions, answer.metadata, answer.store) == ("Be brief.", {"a": "b"}, False)
        assert answer.usage is not None
        assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.total_tokens) == (4, 2, 6)
        cut = await client.responses.create(model=ECHO_MODEL, input="a b c", max_output_tokens=1)
        assert cut.status == "incomplete"
        assert cut.incomplete_details is not None
        assert cut.incomplete_details.reason == "max_output_tokens"
        assert cut.output[0].status == "incomplete"  # type: ignore[union-attr]

    request = asked(with_sdk(scenario), 0)
    assert request.messages == (
        Message(role="system", content=(TextPart("Be brief."),)),
        Message(role="user", content=(TextPart("Hello there"),)),
    )


def test_an_agents_loop() -> None:
    """Thoughts, calls, their results and the answer, all of it sent along by the client."""

    async def scenario(client: openai.AsyncOpenAI) -> None:
        turns: list[Any] = [{"role": "developer", "content": "Search."}, {"role": "user", "content": "Where is x?"}]
        wants: Any = {"include": ["reasoning.encrypted_content"], "store": False, "tools": [TOOL]}
        call = await client.responses.create(model="m", input=turns, **wants)
        assert [item.type for item in call.output] == ["reasoning", "message", "function_call", "function_call"]
        turns += [item.model_dump(exclude_none=True) for item in call.output]
        turns[2].pop("content")  # some clients keep the sealed thought alone
        outputs = [item for item in call.output if item.type == "function_call"]
        turns += [{"type": "function_call_output", "call_id": item.call_id, "output": "here"} for item in outputs]
        answer = await client.responses.create(model="m", input=turns, **wants)
        assert answer.output_text == "It is there."

    request = asked(with_sdk(scenario, backend=ScriptedBackend(agent)))
    assert [message.role for message in request.messages] == ["developer", "user", "assistant", "tool", "tool"]
    assert request.messages[2].content == (
        ReasoningPart("I must look."),
        TextPart("Let me see."),
        ToolCallPart(id="call_1", name="find", arguments='{"word": "x"}'),
        ToolCallPart(id="call_2", name="find", arguments="{}"),
    )


def test_a_stream_is_put_together_by_the_sdk() -> None:
    """Numbered without a gap, in order; its end is what a whole answer says."""

    async def scenario(client: openai.AsyncOpenAI) -> None:
        async with client.responses.stream(model="m", input="Where?", tools=[TOOL]) as stream:
            events = [event async for event in stream]
            final = await stream.get_final_response()
        whole = await client.responses.create(model="m", input="Where?", tools=[TOOL])
        assert [event.sequence_number for event in events] == list(range(len(events)))
        kinds = [event.type for event in events]
        assert kinds[:3] == ["response.created", "response.in_progress", "response.output_item.added"]
        assert kinds[-2:] == ["response.output_item.done", "response.completed"]
        assert final.output_text == whole.output_text == "Let me see."
        assert final.usage == whole.usage
        assert [item.type for item in final.output] == [item.type for item in whole.output]
        assert final.usage is not None
        assert final.usage.output_tokens_details.reasoning_tokens == 2

    with_sdk(scenario, backend=ScriptedBackend(lambda _: CALL))


def test_structured_output_is_parsed() -> None:
    """The SDK's helper sends a schema, and reads what comes back."""
    from pydantic import BaseModel

    class Place(BaseModel):
        name: str

    script: list[Step] = [Started(1), TextDelta(0, '{"name": "x"}'), ChoiceEnded(0, "stop"), Ended(Usage())]

    async def scenario(client: openai.AsyncOpenAI) -> None:
        answer = await client.responses.parse(model="m", input="Where?", text_format=Place)
        assert answer.output_parsed == Place(name="x")
        assert answer.text is not None
        assert answer.text.format is not None
        assert answer.text.format.type == "json_schema"

    grammar = asked(with_sdk(scenario, backend=ScriptedBackend(lambda _: script))).grammar
    assert grammar is not None
    assert json.loads(grammar.source)["required"] == ["name"]


def test_logprobs_when_they_are_included() -> None:
    """In the whole text, and in each piece of it."""

    async def scenario(client: openai.AsyncOpenAI) -> None:
        wants: Any = {"include": ["message.output_text.logprobs"], "top_logprobs": 1}
        answer = await client.responses.create(model=ECHO_MODEL, input="a b", **wants)
        part: Any = answer.output[0].content[0]  # type: ignore[union-attr, index]
        assert [(token.token, len(token.top_logprobs)) for token in part.logprobs] == [("a", 1), (" b", 1)]
        stream = await client.responses.create(model=ECHO_MODEL, input="a b", stream=True, **wants)
        pieces = [event async for event in stream if event.type == "response.output_text.delta"]
        assert [token.token for piece in pieces for token in piece.logprobs] == ["a", " b"]
        with pytest.raises(openai.BadRequestError, match="top_logprobs"):
            await client.responses.create(model=ECHO_MODEL, input="a", top_logprobs=1)

    with_sdk(scenario)


def test_stored_responses_are_gone_on_from(tmp_path: Path) -> None:
    """By their id alone; instructions count once; what is deleted is gone."""

    async def scenario(client: openai.AsyncOpenAI) -> None:
        first = await client.responses.create(model="m", input="Where?", tools=[TOOL], instructions="Search.")
        assert first.store  # type: ignore[attr-defined]
        result: Any = [
            {"type": "function_call_output", "call_id": name, "output": [{"type": "input_text", "text": "here"}]}
            for name in ("call_1", "call_2")
        ]
        second = await client.responses.create(model="m", input=result, previous_response_id=first.id)
        third = await client.responses.create(model="m", input="And y?", previous_response_id=second.id)
        assert await client.responses.retrieve(third.id) == third
        items = await client.responses.input_items.list(second.id, order="asc")
        assert [item.type for item in items.data] == ["function_call_output"] * 2
        after = await client.responses.input_items.list(second.id, after=items.data[1].id, limit=1)
        assert [item.id for item in after.data] == [items.data[0].id]
        with pytest.raises(openai.BadRequestError, match="after"):
            await client.responses.input_items.list(second.id, after="x")
        assert (await client.responses.cancel(third.id)).status == "completed"
        await client.responses.delete(first.id)
        for gone in (client.responses.retrieve(first.id), client.responses.delete(first.id)):
            with pytest.raises(openai.NotFoundError):
                await gone
        with pytest.raises(openai.NotFoundError, match=first.id):
            await client.responses.create(model="m", input="x", previous_response_id=third.id)
        with pytest.raises(openai.BadRequestError, match="stream"):
            await client.responses.retrieve(third.id, stream=True)

    backend = with_sdk(scenario, tmp_path, ScriptedBackend(agent))
    assert [message.role for message in asked(backend).messages] == [
        *("user", "assistant", "tool", "tool", "assistant", "user"),
    ]


def test_streamed_responses_are_stored_as_sent(tmp_path: Path) -> None:
    """And not at all when the client does not want it."""

    async def scenario(client: openai.AsyncOpenAI) -> None:
        async with client.responses.stream(model=ECHO_MODEL, input="a b") as stream:
            final = await stream.get_final_response()
        kept = await client.responses.retrieve(final.id)
        assert kept.model_dump() == {**final.model_dump(exclude={"output"}), "output": kept.model_dump()["output"]}
        assert kept.output_text == final.output_text
        alone = await client.responses.create(model=ECHO_MODEL, input="a", store=False)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(alone.id)

    with_sdk(scenario, tmp_path)


def test_without_a_store_it_is_said(tmp_path: Path) -> None:
    """Nothing is kept where the setting says so."""

    async def scenario(client: openai.AsyncOpenAI) -> None:
        answer = await client.responses.create(model=ECHO_MODEL, input="a")
        with pytest.raises(openai.BadRequestError, match="keep_responses_s"):
            await client.responses.create(model=ECHO_MODEL, input="b", previous_response_id=answer.id)
        with pytest.raises(openai.BadRequestError, match="keep_responses_s"):
            await client.responses.retrieve(answer.id)

    with_sdk(scenario, tmp_path, keep_responses_s=0.0)


def test_a_response_under_way_is_cancelled(tmp_path: Path) -> None:
    """Its stream breaks off, the backend is free, and what there was of it is kept."""
    never = asyncio.Event()
    script: list[Step] = [Started(1), TextDelta(0, "a", (1,)), never.wait]
    backend = ScriptedBackend(lambda _: script)

    async def scenario(client: openai.AsyncOpenAI) -> None:
        stream = await client.responses.create(model="m", input="x", stream=True)
        seen = []
        with pytest.raises(openai.APIError, match="cancelled"):  # noqa: PT012  # it comes in the middle
            async for event in stream:
                seen.append(event.type)
                if event.type == "response.output_text.delta":
                    response_id = seen_id[0]
                    cancelled = await client.responses.cancel(response_id)
                    assert cancelled.status == "cancelled"
                elif event.type == "response.created":
                    seen_id.append(event.response.id)
        await until(lambda: backend.counts.active == 0)
        kept = await client.responses.retrieve(seen_id[0])
        assert (kept.status, kept.output_text) == ("cancelled", "a")

    seen_id: list[str] = []
    with_sdk(scenario, tmp_path, backend)


def test_truncation_leaves_out_the_oldest_turns() -> None:
    """Where the client allows it; what the system says stays, and so does the last turn."""

    def script(request: object) -> list[Step]:
        assert isinstance(request, ChatRequest)
        return [ContextTooLong("too long")] if len(request.messages) > 4 else ANSWER

    turns: list[Any] = [{"role": "system", "content": "s"}]
    for number in range(5):
        turns += [{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": f"a{number}"}]
    turns.append({"role": "user", "content": "q5"})

    async def scenario(client: openai.AsyncOpenAI) -> None:
        answer = await client.responses.create(model="m", input=turns, truncation="auto")
        assert answer.truncation == "auto"
        for fields in ({"truncation": "disabled"}, {"truncation": "auto", "instructions": "a b c d"}):
            asks: Any = {"input": [*turns[:1] * 4, *turns] if "instructions" in fields else turns, **fields}
            with pytest.raises(openai.BadRequestError, match="too long"):
                await client.responses.create(model="m", **asks)

    backend = with_sdk(scenario, backend=ScriptedBackend(script))
    assert [len(asked(backend, number).messages) for number in range(3)] == [12, 10, 8]
    assert [message.content for message in asked(backend, 3).messages] == [
        *((TextPart(text),) for text in ("s", "q4", "a4", "q5")),
    ]


def test_a_coding_clients_request_is_understood() -> None:
    """Hosted tools are not there, and the header says so."""
    body = {
        "model": "m",
        "instructions": "You write code.",
        "input": [
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Rules."}]},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
            {"type": "web_search_call", "id": "ws_1", "status": "completed"},
        ],
        "tools": [TOOL, {"type": "web_search", "external_web_access": False}, {"type": "custom", "name": "patch"}],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"effort": "medium", "summary": "auto"},
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "k",
        "client_metadata": {"x": "y"},
        "text": {"verbosity": "low"},
    }

    async def run() -> str:
        async with serving(backend) as server:
            response = await server.http.post("/v1/responses", json=body)
            assert response.status_code == 200, response.text
            assert response.text.startswith("event: response.created\n")
            assert '"encrypted_content":"mlxm1s.' in response.text
            return response.headers["x-mlxm-ignored"]

    backend = ScriptedBackend(lambda _: CALL)
    assert set(asyncio.run(run()).split(", ")) == {
        *("client_metadata", "prompt_cache_key", "reasoning.summary", "text.verbosity"),
        *("tools[1].web_search", "tools[2].custom", "input[].web_search_call"),
    }
    assert [message.role for message in asked(backend).messages] == ["system", "developer", "user"]
    assert asked(backend).thinking.effort == "medium"


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (ContextTooLong("m"), openai.BadRequestError, "context_length_exceeded"),
        (NotAuthenticated("m"), openai.AuthenticationError, "not_authenticated"),
        (ModelNotFound("m"), openai.NotFoundError, "model_not_found"),
        (Overloaded("m"), openai.RateLimitError, "overloaded"),
        (InternalError("m"), openai.InternalServerError, "internal_error"),
    ],
)
def test_errors_are_the_sdks_own(error: MlxmError, kind: type[openai.APIStatusError], code: str) -> None:
    """Before the first byte they have their own status."""

    async def scenario(client: openai.AsyncOpenAI) -> None:
        for is_streamed in (False, True):
            with pytest.raises(kind) as caught:
                await client.responses.create(model="m", input="x", stream=is_streamed)
            assert caught.value.code == code

    with_sdk(scenario, backend=ScriptedBackend(lambda _: [error]))


def test_an_error_in_a_stream_ends_the_response() -> None:
    """As an error for those who look for it, and as a failed response for those who look for that."""
    script: list[Step] = [Started(1), TextDelta(0, "a", (1,)), Overloaded("too much")]

    async def run() -> list[dict[str, Any]]:
        async with serving(ScriptedBackend(lambda _: script)) as server:
            body = {"model": "m", "input": "x", "stream": True}
            response = await server.http.post("/v1/responses", json=body)
            lines = response.text.split("\n")
            return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]

    *_, error, failed = asyncio.run(run())
    assert (error["type"], error["code"], error["message"]) == ("error", "overloaded", "too much")
    assert (failed["type"], failed["response"]["status"]) == ("response.failed", "failed")
    assert failed["response"]["error"] == {"code": "overloaded", "message": "too much"}
    assert failed["response"]["output"][0]["content"][0]["text"] == "a"
    assert failed["sequence_number"] == error["sequence_number"] + 1


def test_responses_have_their_time(tmp_path: Path) -> None:
    """After it they are as good as gone, and the next one that is stored sweeps them out."""

    async def scenario(client: openai.AsyncOpenAI) -> None:
        first = await client.responses.create(model=ECHO_MODEL, input="a")
        assert await client.responses.retrieve(first.id)
        until_s = time.monotonic() + 5
        while time.monotonic() < until_s:
            try:
                await client.responses.retrieve(first.id)
            except openai.NotFoundError:
                return
        pytest.fail("It was kept for ever.")

    with_sdk(scenario, tmp_path, keep_responses_s=0.3)
