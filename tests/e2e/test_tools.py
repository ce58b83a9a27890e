import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel

from mlxm.store.db import Database
from mlxm.store.imports import Imports
from mlxm.testing import CHOOSE_ANSWER, build_scripted
from mlxm.tiny.families import FAMILIES
from tests.e2e.conftest import BOUND_S, ServerProcess, start

CHATML = """\
{%- for tool in tools or [] %}{{ tool | tojson }}{% endfor %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{%- if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}
{{- message.content or '' }}
{%- for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
MISTRAL = """\
{{ bos_token }}{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}{% endif %}
{%- for message in messages %}[INST]{{ message.content or '' }}[/INST]
{%- for call in message.tool_calls or [] %}[TOOL_CALLS]{{ [call.function] | tojson }}{% endfor %}{% endfor %}"""
HARMONY = """\
{%- for message in messages %}<|start|>{{ message.role }}<|channel|>final<|message|>{{ message.content }}<|end|>
{%- endfor %}{{ tools | tojson }}{% if add_generation_prompt %}<|start|>assistant{% endif %}"""

THOUGHTS = "The user wants the weather in Zürich; I look it up."
ASKED = {"city": "Zürich", "days": 2}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich", "days": 2}}\n</tool_call>'
SECOND = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
QWEN_ANSWERS = {
    "<|answer_0|>": f"<think>\n{THOUGHTS}\n</think>\n\nOne moment, please.\n{CALL}\n{SECOND}",
    "<|answer_1|>": "It rains in Zürich, 7 °C.",
    "\n\n": "So be it.",
}
MISTRAL_ANSWERS = {"<|answer_0|>": '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Zürich", "days": 2}}]'}
HARMONY_ANSWERS = {
    "assistant": f"<|channel|>analysis<|message|>{THOUGHTS}<|end|><|start|>assistant<|channel|>commentary "
    f"to=functions.get_weather <|constrain|>json<|message|>{json.dumps(ASKED, ensure_ascii=False)}"
}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 12},
                "days": {"type": "integer", "minimum": 1, "maximum": 9},
                "unit": {"enum": ["C", "F"]},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
NOW: dict[str, Any] = {
    "type": "function",
    "function": {"name": "now", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}},
}
HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "How is the weather in Zürich?"}]


class Verdict(BaseModel):
    """What an answer is parsed into."""

    mood: Literal["good", "bad"]
    marks: list[Literal[1, 2, 3]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with models that say what the tests have written down."""
    folder = tmp_path_factory.mktemp("tools")
    models, home = folder / "models", folder / "home"
    home.mkdir(mode=0o700)
    write(models / "qwen", "chatml", CHATML + CHOOSE_ANSWER, QWEN_ANSWERS, "qwen3")
    write(models / "mistral", "mistral", MISTRAL + CHOOSE_ANSWER, MISTRAL_ANSWERS, "mistral")
    write(models / "gpt-oss", "harmony", HARMONY, HARMONY_ANSWERS, "llama")
    asyncio.run(import_models(home, models))
    running = start(home)
    yield running
    running.process.terminate()
    running.process.communicate(timeout=BOUND_S)


def write(folder: Path, family: str, template: str, answers: dict[str, str], model_type: str) -> None:
    """A model with a template of its own."""
    build_scripted(
        folder, msgspec.structs.replace(FAMILIES[family], chat_template=template), answers, model_type=model_type
    )


async def import_models(home: Path, folder: Path) -> None:
    """Make models known under the names of their folders."""
    async with await Database.open(home / "mlxm.db") as database:
        await Imports(database).add(folder)


def ask(client: openai.OpenAI, model: str, **fields: Any) -> Any:
    """A chat with tools, greedy."""
    given = {"model": model, "messages": HELLO, "tools": [WEATHER, NOW], "temperature": 0, "max_tokens": 200}
    return client.chat.completions.create(**{**given, **fields})


def gather(stream: Any) -> tuple[dict[str, Any], str]:
    """What the deltas of a stream come to, and why it ended."""
    said: dict[str, Any] = {"content": "", "reasoning_content": "", "calls": {}}
    reason = ""
    for chunk in stream:
        for choice in chunk.choices:
            delta = choice.delta.model_dump(exclude_none=True)
            said["content"] += delta.get("content", "")
            said["reasoning_content"] += delta.get("reasoning_content", "")
            for call in delta.get("tool_calls", ()):
                kept = said["calls"].setdefault(call["index"], {"name": "", "arguments": "", "id": ""})
                kept["id"] += call.get("id", "")
                kept["name"] += call["function"].get("name", "")
                kept["arguments"] += call["function"].get("arguments", "")
            reason = choice.finish_reason or reason
    return said, reason


def called(message: Any) -> list[tuple[str, Any]]:
    """The calls of a whole message."""
    return [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or ()]


def test_the_tool_loop(client: openai.OpenAI) -> None:
    """Thoughts, words and calls come apart; with the results sent back comes the answer."""
    first = ask(client, "qwen")
    message = first.choices[0].message
    assert message.reasoning_content == THOUGHTS
    assert message.content == "One moment, please."
    assert called(message) == [("get_weather", ASKED), ("now", {})]
    assert first.choices[0].finish_reason == "tool_calls"
    assert first.usage.completion_tokens_details.reasoning_tokens > 5
    result: ChatCompletionMessageParam = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "7 °C"}
    answer = ask(client, "qwen", messages=[*HELLO, message, result])
    assert answer.choices[0].message.content == "It rains in Zürich, 7 °C."
    assert (answer.choices[0].finish_reason, answer.choices[0].message.tool_calls) == ("stop", None)


@pytest.mark.parametrize("model", ["qwen", "mistral", "gpt-oss"])
def test_a_stream_says_the_same(client: openai.OpenAI, model: str) -> None:
    """The name first, then the arguments in pieces; also where special tokens are the markup."""
    whole = ask(client, model).choices[0]
    said, reason = gather(ask(client, model, stream=True))
    assert reason == whole.finish_reason == "tool_calls"
    assert said["content"] == (whole.message.content or "")
    assert said["reasoning_content"] == (whole.message.model_extra or {}).get("reasoning_content", "")
    assert [(call["name"], json.loads(call["arguments"])) for call in said["calls"].values()] == called(whole.message)
    assert called(whole.message)[0] == ("get_weather", ASKED)
    assert len({call["id"] for call in said["calls"].values()}) == len(said["calls"])


def test_one_call_at_a_time(client: openai.OpenAI) -> None:
    """Where several are not wanted, the second one is not made."""
    answer = ask(client, "qwen", parallel_tool_calls=False).choices[0]
    assert called(answer.message) == [("get_weather", ASKED)]
    assert answer.finish_reason == "tool_calls"


def test_without_tools_markup_is_text(client: openai.OpenAI) -> None:
    """Nothing is called that is not offered, or that is not to be called."""
    for fields in ({"tool_choice": "none"}, {"tools": openai.NOT_GIVEN}):
        message = ask(client, "qwen", **fields).choices[0].message
        assert message.tool_calls is None
        assert CALL in message.content


@pytest.mark.parametrize("model", ["mlxm/tiny", "qwen"])
def test_required_calls_are_made(client: openai.OpenAI, model: str) -> None:
    """Whatever a model would say by itself, the grammar has it call, with arguments as the schema demands."""
    answer = ask(
        client, model, tool_choice="required", parallel_tool_calls=False, temperature=1, seed=3, max_tokens=400
    )
    ((name, arguments),) = called(answer.choices[0].message)
    assert name in {"get_weather", "now"}
    check(name, arguments)
    assert answer.choices[0].finish_reason == "tool_calls"


def test_the_named_tool_is_called(client: openai.OpenAI) -> None:
    """And no other, streamed as well."""
    named = {"type": "function", "function": {"name": "get_weather"}}
    said, reason = gather(
        ask(client, "mlxm/tiny", tool_choice=named, parallel_tool_calls=False, stream=True, max_tokens=400)
    )
    (call,) = said["calls"].values()
    assert call["name"] == "get_weather"
    check("get_weather", json.loads(call["arguments"]))
    assert reason == "tool_calls"


def check(name: str, arguments: dict[str, Any]) -> None:
    """Arguments fit their schema."""
    if name == "now":
        assert arguments == {}
        return
    assert {"city", "days"} <= arguments.keys() <= {"city", "days", "unit"}
    assert len(arguments["city"]) <= 12
    assert 1 <= arguments["days"] <= 9
    assert arguments.get("unit", "C") in {"C", "F"}


@pytest.mark.parametrize("model", ["mlxm/tiny", "qwen"])
def test_answers_are_parsed(client: openai.OpenAI, model: str) -> None:
    """The SDK's own parser gets what its schema says, also from a model that thinks first."""
    answer = client.chat.completions.parse(
        model=model, messages=HELLO, response_format=Verdict, temperature=1, seed=5, max_tokens=300
    )
    verdict = answer.choices[0].message.parsed
    assert verdict is not None
    assert verdict.mood in {"good", "bad"}


def test_a_schema_that_cannot_be_kept_is_refused(client: openai.OpenAI) -> None:
    """By name, before a model is asked."""
    odd = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=x)y"}}, "required": ["a"]}
    tool = {"type": "function", "function": {"name": "odd", "strict": True, "parameters": odd}}
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, "qwen", tools=[tool], tool_choice="required")
    assert caught.value.param == "tools"


def test_wishes_without_a_word_for_them_are_told(client: openai.OpenAI) -> None:
    """A template that knows no levels of thinking is not made to; the answer's header says so."""
    raw = client.chat.completions.with_raw_response.create(
        model="qwen", messages=HELLO, reasoning_effort="high", max_tokens=5
    )
    assert raw.headers["x-mlxm-ignored"] == "thinking.effort"
    plain = client.chat.completions.with_raw_response.create(model="qwen", messages=HELLO, max_tokens=5)
    assert "x-mlxm-ignored" not in plain.headers


def test_strict_tools_leave_good_calls_alone(client: openai.OpenAI) -> None:
    """What fits its schema comes as it would have without, thoughts and words as well, and beside other formats."""
    strict = [{"type": "function", "function": {**tool["function"], "strict": True}} for tool in (WEATHER, NOW)]
    choice = ask(client, "qwen", tools=strict).choices[0]
    assert choice.message.reasoning_content == THOUGHTS
    assert choice.message.content == "One moment, please."
    assert called(choice.message) == [("get_weather", ASKED), ("now", {})]
    schema = {"type": "json_schema", "json_schema": {"name": "verdict", "schema": Verdict.model_json_schema()}}
    either = ask(client, "mistral", response_format=schema).choices[0]
    ((name, arguments),) = called(either.message)  # in other tokens than it would choose by itself
    check(name, arguments)
