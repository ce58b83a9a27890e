import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import httpx
import openai
import psutil
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.e2e.conftest import BOUND_S, MODEL, ServerProcess, StartServer

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]
LONG = 4000


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    """A chat completion that is the same every time."""
    return client.chat.completions.create(**{"model": MODEL, "messages": HELLO, "seed": 7, "max_tokens": 16, **fields})


def text_of(stream: Any) -> str:
    """The text of a whole stream."""
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def test_whole_answer(client: openai.OpenAI) -> None:
    """The built-in model answers, and the tokens are counted."""
    answer = ask(client)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("length", "stop")
    assert 0 < answer.usage.completion_tokens <= 16
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.model == MODEL


def test_stream_says_the_same(client: openai.OpenAI) -> None:
    """Streamed or whole, the same seed gives the same text, reason and usage."""
    whole = ask(client, temperature=0.8)
    chunks = list(ask(client, temperature=0.8, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert (chunks[-1].choices, chunks[-1].usage) == ([], whole.usage)
    assert [chunk.choices[0].delta.role for chunk in chunks[:2]] == ["assistant", None]


def test_what_was_read_before_is_not_read_again(client: openai.OpenAI) -> None:
    """The second time a prompt comes, its whole blocks are known, it is said so, and the answer is the same."""
    long: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Read this once. " * 40}]
    first, second = (ask(client, messages=long, temperature=0) for _ in range(2))
    cached = [answer.usage.prompt_tokens_details.cached_tokens for answer in (first, second)]
    num_tokens = first.usage.prompt_tokens
    assert cached == [0, (num_tokens - 1) // 32 * 32]
    assert cached[1] > 32
    assert second.choices[0].message.content == first.choices[0].message.content


def test_several_choices(client: openai.OpenAI) -> None:
    """Each goes its own way, the first one as if it were alone; the prompt is counted once."""
    alone = ask(client, temperature=0.9)
    answer = ask(client, temperature=0.9, n=3)
    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert texts[0] == alone.choices[0].message.content
    assert len(set(texts)) == 3
    assert answer.usage.prompt_tokens == alone.usage.prompt_tokens
    assert answer.usage.completion_tokens > alone.usage.completion_tokens


def test_stop_cuts_the_answer(client: openai.OpenAI) -> None:
    """The text ends before the stop string."""
    whole = ask(client, temperature=0).choices[0].message.content
    words = whole.split(" ")
    assert len(words) > 3, whole
    stop = f" {words[2]}"
    cut = ask(client, temperature=0, stop=stop)
    assert cut.choices[0].message.content == whole[: whole.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


def test_cancel_stops_the_engine(server: ServerProcess, client: openai.OpenAI) -> None:
    """A stream that is closed in the middle is no longer computed: what comes next is answered at once."""
    ask(client)
    stream = ask(client, stream=True, max_tokens=LONG)
    request_id = stream.response.headers["x-request-id"]
    assert len(list(islice(stream, 5))) == 5
    stream.close()
    began = time.monotonic()
    ask(client)
    assert time.monotonic() - began < 10
    status, code, num_tokens = wait_for_row(server, request_id)
    assert (status, code) == (499, "cancelled")
    assert num_tokens < LONG / 2


def wait_for_row(server: ServerProcess, request_id: str) -> tuple[int, str | None, int]:
    """The row of a request, once it has ended."""
    deadline = time.monotonic() + BOUND_S
    while time.monotonic() < deadline:
        row = server.rows().get(request_id)
        if row is not None:
            return row
        time.sleep(0.02)
    raise TimeoutError(request_id)


def test_abandoned_whole_answer_stops_too(server: ServerProcess) -> None:
    """Also without streaming the engine stops when nobody waits any more."""
    with server.client() as client:
        ask(client)
        with pytest.raises(openai.APITimeoutError):
            ask(client.with_options(timeout=0.3), max_tokens=LONG, extra_headers={"x-request-id": "abandoned"})
        ask(client)
    status, code, num_tokens = wait_for_row(server, "abandoned")
    assert (status, code) == (499, "cancelled")
    assert num_tokens < LONG / 2


@pytest.mark.parametrize(
    ("fields", "error", "status", "code", "param"),
    [
        ({"model": "no/such"}, openai.NotFoundError, 404, "model_not_found", "model"),
        ({"temperature": 5}, openai.BadRequestError, 400, "invalid_request", "temperature"),
        ({"max_tokens": 0}, openai.BadRequestError, 400, "invalid_request", "max_tokens"),
        ({"n": 0}, openai.BadRequestError, 400, "invalid_request", "n"),
        ({"extra_body": {"typo": 1}}, openai.BadRequestError, 400, "unsupported_parameter", "typo"),
        ({"messages": []}, openai.BadRequestError, 400, "invalid_request", "messages"),
        ({"max_tokens": 10**9}, openai.BadRequestError, 400, "context_length_exceeded", "messages"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_errors_are_the_sdks_own(
    client: openai.OpenAI,
    fields: dict[str, Any],
    error: type[openai.APIStatusError],
    status: int,
    code: str,
    param: str,
    stream: bool,  # noqa: FBT001  # named by pytest
) -> None:
    """Every refusal arrives as the class that people catch, with code, parameter and request id."""
    with pytest.raises(error) as caught:
        ask(client, stream=stream, **fields)
    assert (caught.value.status_code, caught.value.code, caught.value.param) == (status, code, param)
    assert caught.value.request_id is not None
    assert re.fullmatch("req_[0-9a-f]{12}", caught.value.request_id)
    assert caught.value.body["message"] in str(caught.value)  # type: ignore[index]


def test_wrong_base_url(server: ServerProcess) -> None:
    """A forgotten /v1 is told."""
    with (
        openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client,
        pytest.raises(openai.NotFoundError, match="/v1/chat/completions"),
    ):
        ask(client)


def test_parallel_streams_are_all_complete(client: openai.OpenAI) -> None:
    """Thirty-two clients at once get what each would have got alone."""
    seeds = range(32)
    alone = {seed: text_of(ask(client, stream=True, seed=seed, temperature=0.9)) for seed in (0, 31)}
    with ThreadPoolExecutor(32) as pool:
        texts = list(pool.map(lambda seed: text_of(ask(client, stream=True, seed=seed, temperature=0.9)), seeds))
    assert len(texts) == 32
    assert all(texts)
    assert {seed: texts[seed] for seed in alone} == alone


def test_every_request_leaves_its_row(server: ServerProcess, client: openai.OpenAI) -> None:
    """An answer that was received can be found in the audit trail, by the id that the SDK shows."""
    answer = ask(client)
    status, code, tokens = server.rows()[answer._request_id]
    assert (status, code, tokens) == (200, None, answer.usage.completion_tokens)


def test_probes_are_open(server: ServerProcess) -> None:
    """Alive, and ready."""
    assert httpx.get(f"{server.url}/health").json()["status"] == "ok"
    assert httpx.get(f"{server.url}/ready").json()["status"] == "ready"


def test_sigterm_lets_a_stream_finish(start_server: StartServer) -> None:
    """What runs is finished; then the server and its processes are gone."""
    server = start_server()
    with server.client() as client:
        ask(client)
        children = psutil.Process(server.process.pid).children(recursive=True)
        assert children
        stream = ask(client, stream=True, max_tokens=300)
        next(stream)
        server.process.send_signal(signal.SIGTERM)
        chunks = list(stream)
    assert chunks[-1].choices[0].finish_reason in ("length", "stop")
    assert server.process.wait(BOUND_S) == 0
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []


def test_sigterm_ends_what_takes_too_long(start_server: StartServer) -> None:
    """When the drain is over, a stream ends with an error that the SDK raises."""
    server = start_server("--drain", "0.2")
    with server.client() as client:
        ask(client)
        stream = ask(client, stream=True, max_tokens=LONG)
        next(stream)
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(openai.APIError, match="shutting down"):
            list(stream)
    assert server.process.wait(BOUND_S) == 0


def test_server_never_loads_the_heavy_libraries(start_server: StartServer) -> None:
    """Models run in their own processes: the server that answered a chat has imported nothing of MLX."""
    server = start_server(interpreter=("-X", "importtime"))
    with server.client() as client:
        assert ask(client).choices[0].message.content
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(BOUND_S) == 0
    lines = [line for line in server.log_path.read_text().splitlines() if line.startswith("import time:")]
    loaded = {line.rsplit("|", 1)[1].strip().partition(".")[0] for line in lines}
    assert "litestar" in loaded
    assert not loaded & {"mlx", "mlx_lm", "mlx_vlm", "mlx_embeddings", "transformers", "tokenizers", "torch"}
