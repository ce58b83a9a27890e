import asyncio
import json
import random
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from mlxm.testing import CHOOSE_ANSWER
from tests.e2e.conftest import BOUND_S, MODEL, ServerProcess, start
from tests.e2e.test_tools import (
    ASKED,
    CHATML,
    NOW,
    QWEN_ANSWERS,
    THOUGHTS,
    WEATHER,
    import_models,
    write,
)

BLOCK = 64
"""More than a block of the cache: what is known is found in whole blocks."""
WORDS = ("read", "write", "file", "path", "line", "search", "edit", "shell", "test", "plan", "task", "note", "before")


@pytest.fixture
def claude(server: ServerProcess) -> Iterator[anthropic.Anthropic]:
    """The SDK in front of the shared server."""
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=BOUND_S) as client:
        yield client


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with a model that thinks, calls two tools, and answers when a result is there."""
    folder = tmp_path_factory.mktemp("dialects")
    models, home = folder / "models", folder / "home"
    home.mkdir(mode=0o700)
    write(models / "qwen", "chatml", CHATML + CHOOSE_ANSWER, QWEN_ANSWERS, "qwen3")
    asyncio.run(import_models(home, models))
    running = start(home)
    yield running
    running.process.terminate()
    running.process.communicate(timeout=BOUND_S)


def prose(seed: int, num_words: int) -> str:
    """Text that is the same each time."""
    return " ".join(random.Random(seed).choices(WORDS, k=num_words))


def coding_request(note: str, turns: list[Any]) -> dict[str, Any]:
    """What a coding client sends: a note that differs each time, a long system prompt, many tools, and the turns.

    Shorter than the 23,000 tokens of a real one: the model here reads 8,192 at most.
    """
    cached = {"cache_control": {"type": "ephemeral"}}
    schema = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}
    return {
        "model": MODEL,
        "max_tokens": 8,
        "system": [
            {"type": "text", "text": f"x-anthropic-billing-header: cc_version=2.1; cch={note};"},
            {"type": "text", "text": "You write code.", **cached},
            {"type": "text", "text": prose(1, 600), **cached},
        ],
        "tools": [
            {"name": f"Tool{number}", "description": prose(number, 20), "input_schema": schema} for number in range(24)
        ],
        "messages": turns,
        "metadata": {"user_id": f"session_{note}"},
        "thinking": {"type": "disabled"},
    }


def ask(claude: anthropic.Anthropic, request: dict[str, Any]) -> anthropic.types.Message:
    """As that client does, with its flags beside."""
    headers = {"anthropic-beta": "claude-code-20250219,context-management-2025-06-27"}
    answer: anthropic.types.Message = claude.messages.create(
        **request, extra_headers=headers, extra_query={"beta": "true"}, extra_body={"temperature": 0}
    )
    return answer


def test_a_coding_client_waits_for_what_is_new_alone(claude: anthropic.Anthropic) -> None:
    """Its second call reads nothing again of the first one but the last, unfilled block."""
    turns: list[Any] = [{"role": "user", "content": [{"type": "text", "text": "Read the file."}]}]
    first = ask(claude, coding_request("a1b2c", turns))
    total = first.usage.input_tokens + (first.usage.cache_read_input_tokens or 0)
    assert total > 1500
    turns += [
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "toolu_1", "name": "Tool1", "input": {"path": "a"}}],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": prose(2, 30)}]},
        {"role": "system", "content": "The file has changed."},
    ]
    second = ask(claude, coding_request("d4e5f", turns))
    reused = second.usage.cache_read_input_tokens
    assert reused is not None
    assert total - BLOCK < reused <= total
    assert second.usage.input_tokens < 400


def test_counted_tokens_are_those_used(claude: anthropic.Anthropic) -> None:
    """With everything that goes into the prompt."""
    request = coding_request("x", [{"role": "user", "content": "Hello"}])
    asked = {name: request[name] for name in ("model", "system", "tools", "messages", "thinking")}
    counted = claude.messages.count_tokens(**asked)
    used = ask(claude, request).usage
    assert counted.input_tokens == used.input_tokens + (used.cache_read_input_tokens or 0)


def test_a_forced_call_in_both_dialects(claude: anthropic.Anthropic, client: openai.OpenAI) -> None:
    """Also a model that has learned nothing calls as it must, and its arguments fit."""
    schema: Any = {
        "type": "object",
        "properties": {"place": {"enum": ["here", "there"]}},
        "required": ["place"],
        "additionalProperties": False,
    }
    tool: Any = {"name": "find", "input_schema": schema}
    whole = claude.messages.create(
        model=MODEL, max_tokens=200, messages=[{"role": "user", "content": "Find it."}], tools=[tool],
        tool_choice={"type": "tool", "name": "find"},
    )  # fmt: skip
    assert (whole.stop_reason, whole.content[-1].type) == ("tool_use", "tool_use")
    assert whole.content[-1].input["place"] in ("here", "there")
    function: Any = {"type": "function", "name": "find", "parameters": schema, "strict": True}
    with client.responses.stream(
        model=MODEL, max_output_tokens=200, input="Find it.", tools=[function], tool_choice="required"
    ) as stream:
        final = stream.get_final_response()
    call = final.output[-1]
    assert call.type == "function_call"
    assert json.loads(call.arguments)["place"] in ("here", "there")


def test_responses_go_on_from_each_other(client: openai.OpenAI) -> None:
    """They are kept in the home's database, and what they read before is not read again."""
    said: dict[str, Any] = {"model": MODEL, "max_output_tokens": 4, "temperature": 0}
    first = client.responses.create(input=prose(3, 200), instructions=prose(4, 50), **said)
    second = client.responses.create(
        input="And then?", instructions=prose(4, 50), previous_response_id=first.id, **said
    )
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens
    assert second.usage.input_tokens_details.cached_tokens > first.usage.input_tokens - BLOCK
    client.responses.delete(first.id)


def test_a_stop_sequence_is_named(claude: anthropic.Anthropic) -> None:
    """The engine tells which one it was."""
    talk: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Hello"}],
        "extra_body": {"temperature": 0},
    }
    free = claude.messages.create(max_tokens=12, **talk)
    text = "".join(block.text for block in free.content if block.type == "text")
    word = text.split()[1]
    stopped = claude.messages.create(max_tokens=12, stop_sequences=["\0never", word], **talk)
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", word)


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "stream"])
def test_an_agents_loop_in_anthropics_dialect(scripted: ServerProcess, is_streamed: bool) -> None:  # noqa: FBT001
    """Thought, words, two calls, a result, and the answer."""
    tools: list[Any] = [
        {"name": each["function"]["name"], "input_schema": each["function"]["parameters"]} for each in (WEATHER, NOW)
    ]
    turns: list[Any] = [{"role": "user", "content": "How is the weather in Zürich?"}]
    fields: dict[str, Any] = {"model": "qwen", "max_tokens": 200, "tools": tools, "extra_body": {"temperature": 0}}
    with anthropic.Anthropic(base_url=scripted.url, api_key="none", max_retries=0, timeout=BOUND_S) as claude:

        def say() -> anthropic.types.Message:
            if not is_streamed:
                return claude.messages.create(messages=turns, **fields)
            with claude.messages.stream(messages=turns, **fields) as stream:
                return stream.get_final_message()

        first = say()
        assert [block.type for block in first.content] == ["thinking", "text", "tool_use", "tool_use"]
        thought, text, weather, now = first.content
        assert thought.type == "thinking"
        assert thought.thinking.strip() == THOUGHTS
        assert text.type == "text"
        assert text.text.strip() == "One moment, please."
        assert weather.type == now.type == "tool_use"
        assert (weather.name, weather.input, now.input) == ("get_weather", ASKED, {})
        assert first.stop_reason == "tool_use"
        result = {"type": "tool_result", "tool_use_id": weather.id, "content": "7 °C"}
        turns += [{"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
        answer = say()
        assert [block.text for block in answer.content if block.type == "text"] == ["It rains in Zürich, 7 °C."]
        assert answer.stop_reason == "end_turn"


def test_an_agents_loop_in_responses(scripted: ServerProcess) -> None:
    """The same, gone on from by the first response's id, in streams."""
    tools: list[Any] = [{"type": "function", **each["function"]} for each in (WEATHER, NOW)]
    fields: dict[str, Any] = {"model": "qwen", "max_output_tokens": 200, "tools": tools, "temperature": 0}
    with scripted.client() as client:
        with client.responses.stream(input="How is the weather in Zürich?", **fields) as stream:
            first = stream.get_final_response()
        assert [item.type for item in first.output] == ["reasoning", "message", "function_call", "function_call"]
        assert first.output_text.strip() == "One moment, please."
        call = first.output[2]
        assert call.type == "function_call"
        assert json.loads(call.arguments) == ASKED
        assert first.usage is not None
        assert first.usage.output_tokens_details.reasoning_tokens > 5
        result: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "7 °C"}]
        with client.responses.stream(input=result, previous_response_id=first.id, **fields) as stream:
            assert stream.get_final_response().output_text == "It rains in Zürich, 7 °C."
