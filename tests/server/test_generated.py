import asyncio
import json
import threading
from collections.abc import Iterator
from random import Random
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlxm.server.openapi import openapi_document
from mlxm.testing.backends import ECHO_MODEL, EchoBackend
from mlxm.wire.anthropic_messages import MessagesRequest
from mlxm.wire.openai_chat import ChatCompletionRequest
from mlxm.wire.openai_completions import TextCompletionRequest
from mlxm.wire.openai_responses import ResponsesRequest
from tests.conftest import SOAK
from tests.server.harness import CHAT, chat_body, serving

NUM_BODIES = 20_000 if SOAK == "long" else 1_500
NUM_CASES = 200 if SOAK == "long" else 12
GOOD_EVERY = 100
COMPLETIONS = "/v1/completions"
# What is asked where, and a request that is good.
ASKED: list[tuple[str, Any, dict[str, Any]]] = [
    (CHAT, ChatCompletionRequest, chat_body()),
    (COMPLETIONS, TextCompletionRequest, {"model": ECHO_MODEL, "prompt": "a b"}),
    ("/v1/messages", MessagesRequest, {**chat_body(), "max_tokens": 9}),
    ("/v1/responses", ResponsesRequest, {"model": ECHO_MODEL, "input": "a b"}),
]

OPERATIONS = {
    operation["operationId"]
    for path in msgspec.json.decode(openapi_document())["paths"].values()
    for operation in path.values()
}

# Values that were wrong somewhere before, beside those that fit.
ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 1.5, -0.0, 1e308, 2**31, 2**63, -(2**63) - 1, 10**30),
    *("", "x", "\u0000", "\u2028", "🦜", "null", "12", "auto", "none", "required", "text", "a" * 5000),
    *([], [None], [[]], [1], ["a"], [["a"]], [[1]], {}, {"": ""}, {"type": "text"}, {"type": None}, [{}] * 50),
    {"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}},
    {"type": "function", "function": {"name": "f", "parameters": {}}},
    [{"type": "function", "function": {"name": "f"}}],
    [
        {
            "role": "assistant",
            "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}],
        }
    ],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}],
]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server in a thread of its own, for tests that are not asynchronous."""
    ready, stop = threading.Event(), asyncio.Event()
    state: dict[str, Any] = {}

    async def serve() -> None:
        async with serving(EchoBackend()) as server:
            state.update(url=f"http://127.0.0.1:{server.port}", loop=asyncio.get_running_loop())
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert ready.wait(10)
    yield state["url"]
    state["loop"].call_soon_threadsafe(stop.set)
    thread.join(10)


def odd_body(dice: Random, request_type: Any, good: dict[str, Any]) -> dict[str, Any]:
    """A good request of which some fields hold something else."""
    body = dict(good)
    fields = list(request_type.__struct_fields__)
    for _ in range(dice.randint(1, 4)):
        body[dice.choice(fields)] = dice.choice(ODD)
    if dice.random() < 0.1:
        body[dice.choice(["x", "keep_alive", "store", "functions"])] = dice.choice(ODD)
    return body


@pytest.mark.slow
def test_odd_bodies_break_nothing() -> None:
    """Whatever stands in a field, the answer is one of ours and comes soon; good requests are served in between."""

    async def scenario() -> None:
        dice = Random(7)
        statuses: dict[int, int] = {}
        async with serving(EchoBackend()) as server:
            for number in range(NUM_BODIES):
                path, request_type, good = dice.choice(ASKED)
                body = odd_body(dice, request_type, good)
                content = json.dumps(body).encode()
                response = await server.http.post(path, content=content, headers={"content-type": "application/json"})
                assert response.status_code in (200, 400, 404), (content, response.text)
                assert response.headers["x-request-id"]
                statuses[response.status_code] = statuses.get(response.status_code, 0) + 1
                if number % GOOD_EVERY == 0:
                    assert (await server.chat()).status_code == 200
        assert statuses[200] > NUM_BODIES / 50
        assert statuses[400] > NUM_BODIES / 4

    asyncio.run(scenario())


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=NUM_BODIES // 10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([*(path for path, _, _ in ASKED), "/v1/messages/count_tokens", "/tokenize", "/detokenize"]),
    st.dictionaries(
        st.sampled_from(sorted({"tokens", *(name for _, kind, _ in ASKED for name in kind.__struct_fields__)})),
        JSON_VALUES,
        max_size=6,
    ),
)
def test_any_json_is_answered(url: str, path: str, body: dict[str, Any]) -> None:
    """Found by a machine that looks for the smallest body that is not."""
    response = httpx.post(url + path, json={"model": ECHO_MODEL, **body}, timeout=10)
    assert response.status_code in (200, 400, 404), response.text


def test_the_description_is_served(url: str) -> None:
    """And names every route for text."""
    served = httpx.get(f"{url}/openapi.json")
    assert served.headers["content-type"] == "application/json"
    assert {
        CHAT,
        COMPLETIONS,
        "/v1/batch/completions",
        "/v1/models",
        "/v1/models/{model_id}",
        "/tokenize",
    } <= served.json()["paths"].keys()
    assert served.content == openapi_document()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("operation_id", sorted(OPERATIONS))
def test_the_description_is_true(url: str, operation_id: str) -> None:
    """Made from the description, no request is a server error, and every answer is as described."""
    import schemathesis
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import response_schema_conformance

    schema = schemathesis.openapi.from_dict(msgspec.json.decode(openapi_document()))
    operation = schema.find_operation_by_id(operation_id)

    @settings(max_examples=NUM_CASES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(operation.as_strategy())
    def ask(case: Any) -> None:
        if isinstance(case.body, dict) and "model" in case.body:
            case.body["model"] = ECHO_MODEL
        case.call_and_validate(base_url=url, checks=[not_a_server_error, response_schema_conformance])

    ask()
