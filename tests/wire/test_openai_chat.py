from typing import Any

import msgspec
import pytest

from mlxm.errors import InvalidRequest, UnsupportedParameter
from mlxm.types import (
    ChatRequest,
    Grammar,
    Message,
    ReasoningPart,
    Sampling,
    TextPart,
    Thinking,
    Tool,
    ToolCallPart,
    ToolChoice,
)
from mlxm.wire import openai_chat, openai_messages
from mlxm.wire.openai_chat import ChatCompletionRequest, read_request

CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
FUNCTION = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
TOOL_PARAMETERS = "tools[0].function.parameters"
MINIMAL: dict[str, Any] = {"model": "mlxm/tiny", "messages": [{"role": "user", "content": "Hi"}]}


def body(**fields: Any) -> bytes:
    """A request of which some fields are given."""
    return msgspec.json.encode({**MINIMAL, **fields})


def chat(*, is_batch: bool = False, **fields: Any) -> ChatRequest:
    """The neutral form of such a request."""
    return read_request(body(**fields)).request.to_chat("r", is_batch=is_batch)


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
        ({"messages": [{"role": "function", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "user", "content": "x", "tool_call_id": "c"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [CALL]}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "user", "content": "x", "reasoning": "y"}]}, "messages[0].reasoning_content"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant", "tool_calls": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "smell"}]}]}, "messages[0].content[0].type"),
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
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": "1"}, "n"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": -0.1}, "min_p"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"frequency_penalty": -2.1}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"logit_bias": {"5": 101}}, "logit_bias[...]"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"top_logprobs": 0}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"max_tokens": 3, "min_tokens": 4}, "min_tokens"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ({"priority": 3}, "priority"),
        ({"service_tier": "priority"}, "service_tier"),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [FUNCTION], "tool_choice": {"type": "custom", "custom": {"name": "x"}}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [FUNCTION], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]}, TOOL_PARAMETERS),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
        ({"chat_template_kwargs": {"a": "x" * 70_000}}, "chat_template_kwargs"),
        ({"stream": 1}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
    ],
)
def test_misfits_name_the_parameter(fields: dict[str, Any], param: str) -> None:
    """Every number has bounds, nothing is converted, and the error says which field is wrong."""
    with pytest.raises(InvalidRequest) as caught:
        chat(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"audio": {}}, "audio"),
        ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": {"name": "f"}}, "function_call"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"keep_alive": "5m"}, "keep_alive"),
        ({"chat_template": "{{ x }}"}, "chat_template"),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
        ({"verbosity": "low"}, "verbosity"),
        ({"store": True}, "store"),
        ({"temprature": 0.5}, "temprature"),
        ({"messages": [{"role": "assistant", "content": "x", "audio": {"id": "a"}}]}, "messages[0].audio"),
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


def test_every_way_of_choosing_tokens_arrives() -> None:
    """What the API and the servers for local models have between them."""
    asked = chat(
        top_p=0.5,
        top_k=-1,
        min_p=0.1,
        seed=2,
        presence_penalty=1,
        frequency_penalty=-1,
        repetition_penalty=1.1,
        logit_bias={"5": -100, "7": 1.5},
        min_tokens=2,
        ignore_eos=True,
        stop_token_ids=[3, 4],
        n=3,
        logprobs=True,
    )
    assert asked.sampling == Sampling(
        top_p=0.5,
        top_k=0,
        min_p=0.1,
        seed=2,
        presence_penalty=1.0,
        frequency_penalty=-1.0,
        repetition_penalty=1.1,
        logit_bias=((5, -100.0), (7, 1.5)),
        min_tokens=2,
        ignore_eos=True,
    )
    assert (asked.stop_ids, asked.num_choices, asked.num_logprobs) == ((3, 4), 3, 0)
    assert chat(logprobs=True, top_logprobs=5).num_logprobs == 5
    assert chat(logprobs=False).num_logprobs is None


@pytest.mark.parametrize(
    ("fields", "is_batch", "expected"),
    [
        ({}, False, 1),
        ({"service_tier": "auto"}, False, 1),
        ({"service_tier": "flex"}, False, 2),
        ({"priority": 0}, False, 0),
        ({"priority": "low"}, False, 2),
        ({}, True, 2),
        ({"priority": "low"}, True, 2),
    ],
)
def test_priority(fields: dict[str, Any], is_batch: bool, expected: int) -> None:  # noqa: FBT001  # named by pytest
    """Said by the route, the tier, or the request itself."""
    assert chat(is_batch=is_batch, **fields).priority == expected


@pytest.mark.parametrize("fields", [{"priority": 1}, {"priority": "high", "service_tier": "flex"}])
def test_nobody_asks_for_more_priority_than_the_route_has(fields: dict[str, Any]) -> None:
    """On the batch routes there is but one."""
    with pytest.raises(InvalidRequest) as caught:
        chat(is_batch=True, **fields)
    assert caught.value.param == "priority"


def test_a_whole_conversation_with_tools() -> None:
    """Reasoning, text and calls keep their order; results name their call."""
    messages = [
        {"role": "user", "content": "What is it?", "name": "Ada"},
        {"role": "assistant", "content": None, "reasoning_content": "Hm.", "tool_calls": [{**CALL, "index": 0}]},
        {"role": "tool", "content": [{"type": "text", "text": "42"}], "tool_call_id": "call_1"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}], "reasoning": "Well."},
    ]
    assert chat(messages=messages).messages == (
        Message(role="user", content=(TextPart("What is it?"),), name="Ada"),
        Message(
            role="assistant", content=(ReasoningPart("Hm."), ToolCallPart(id="call_1", name="f", arguments='{"x": 1}'))
        ),
        Message(role="tool", content=(TextPart("42"),), tool_call_id="call_1"),
        Message(role="assistant", content=(ReasoningPart("Well."), TextPart("No."))),
    )


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, ToolChoice()),
        ("auto", ToolChoice()),
        ("none", ToolChoice(mode="none")),
        ("required", ToolChoice(mode="required")),
        ({"type": "function", "function": {"name": "f"}}, ToolChoice(mode="named", name="f")),
    ],
)
def test_tools_and_how_to_call_them(choice: Any, expected: ToolChoice) -> None:
    """The schema of the arguments stays as it was written."""
    asked = chat(tools=[FUNCTION], tool_choice=choice)
    assert asked.tools == (Tool(name="f", description="d", parameters='{"type":"object"}'),)
    assert asked.tool_choice == expected


def test_some_of_the_tools_may_be_allowed() -> None:
    """The others are not offered."""
    other = {"type": "function", "function": {"name": "g", "strict": True}}
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "g"}}]}
    asked = chat(
        tools=[FUNCTION, other],
        tool_choice={"type": "allowed_tools", "allowed_tools": allowed},
        parallel_tool_calls=False,
    )
    assert asked.tools == (Tool(name="g", is_strict=True),)
    assert asked.tool_choice == ToolChoice(mode="required", allows_several=False)


@pytest.mark.parametrize(
    ("effort", "expected"),
    [
        (None, Thinking()),
        ("none", Thinking(is_on=False, effort="none")),
        ("high", Thinking(is_on=True, effort="high")),
    ],
)
def test_reasoning_effort(effort: Any, expected: Thinking) -> None:
    """No effort is no thinking at all."""
    assert chat(reasoning_effort=effort).thinking == expected


def test_template_options_and_a_begun_answer() -> None:
    """What the template is given besides, and that the last message goes on."""
    messages = [*MINIMAL["messages"], {"role": "assistant", "content": "Once"}]
    asked = chat(chat_template_kwargs={"enable_thinking": False}, continue_final_message=True, messages=messages)
    assert (asked.template_options, asked.continues_final) == ('{"enable_thinking":false}', True)
    assert (chat().template_options, chat().continues_final) == ("{}", False)


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
SOURCE = '{"type":"object","properties":{"a":{"type":"integer"}}}'


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, Grammar(kind="json_object", source="{}")),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": SCHEMA, "strict": True},
                }
            },
            Grammar(kind="json_schema", source=SOURCE),
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
            Grammar(kind="json_object", source="{}"),
        ),
        ({"guided_json": SCHEMA}, Grammar(kind="json_schema", source=SOURCE)),
        ({"guided_json": SOURCE}, Grammar(kind="json_schema", source=SOURCE)),
        ({"guided_regex": "[ab]+"}, Grammar(kind="regex", source="[ab]+")),
        ({"guided_choice": ["yes", "no"]}, Grammar(kind="choice", source='["yes","no"]')),
        ({"guided_grammar": "start: A"}, Grammar(kind="lark", source="start: A")),
        ({"structured_outputs": {"json": SCHEMA}}, Grammar(kind="json_schema", source=SOURCE)),
        ({"structured_outputs": {"regex": "a"}}, Grammar(kind="regex", source="a")),
        ({"structured_outputs": {"choice": ["a"]}}, Grammar(kind="choice", source='["a"]')),
        ({"structured_outputs": {"grammar": "start: A"}}, Grammar(kind="lark", source="start: A")),
        ({"structured_outputs": {"json_object": True}}, Grammar(kind="json_object", source="{}")),
    ],
)
def test_what_the_answer_has_to_look_like(fields: dict[str, Any], expected: Grammar | None) -> None:
    """Every spelling comes down to one grammar."""
    assert chat(**fields).grammar == expected


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"guided_json": SCHEMA, "guided_regex": "a"}, "guided_regex"),
        (
            {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
            "structured_outputs.regex",
        ),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": 5}, "guided_json"),
        ({"guided_json": "[1]"}, "guided_json"),
        ({"guided_json": {"a": "x" * 70_000}}, "guided_json"),
        ({"guided_regex": ""}, "guided_regex"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": ["x" * 70_000]}, "guided_choice"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs"),
    ],
)
def test_what_is_no_grammar_is_refused(fields: dict[str, Any], param: str) -> None:
    """Two of them, none at all, and what is too large to be one."""
    with pytest.raises(InvalidRequest) as caught:
        chat(**fields)
    assert caught.value.param == param


def test_deep_schemas_are_refused() -> None:
    """Whatever reads them next would not come back."""
    deep: dict[str, Any] = {}
    for _ in range(70):
        deep = {"a": deep}
    with pytest.raises(InvalidRequest, match="deeper than 64"):
        chat(guided_json=deep)


def test_what_changes_nothing_inside_of_fields_is_told_too() -> None:
    """Marks for caches elsewhere, which clients of cloud models set on parts, and a schema's description."""
    part = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}
    schema = {"type": "json_schema", "json_schema": {"name": "n", "description": "d"}}
    asked = read_request(
        body(messages=[{"role": "user", "content": [part, part]}] * 2, response_format=schema, user="me")
    )
    assert asked.request.to_chat("r").messages[0].content == (TextPart("a"), TextPart("a"))
    assert asked.ignored == (
        "user",
        "response_format.json_schema.description",
        "messages[].content[].cache_control",
    )


def test_tables_do_not_overlap() -> None:
    """A field acts, is a no-op, or is tolerated: one of these."""
    acting = set(ChatCompletionRequest.__struct_fields__)
    assert not acting & openai_chat.NO_OPS.keys()
    assert not acting & openai_chat.TOLERATED
    assert not openai_chat.TOLERATED & openai_chat.NO_OPS.keys()
    assert not set(openai_messages.ChatMessage.__struct_fields__) & openai_messages.MESSAGE_NO_OPS.keys()
