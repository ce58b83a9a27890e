import asyncio
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mlxm.errors import ContextTooLong, MlxmError, ModelNotFound, OutOfMemory, Overloaded, StoreError, WorkerDied
from mlxm.server.answer import MAX_BUFFERED
from mlxm.server.limits import Limits
from mlxm.store.audit import Audit, AuditRow
from mlxm.store.db import Database
from mlxm.testing.backends import ECHO_MODEL, EchoBackend, ScriptedBackend, Step
from mlxm.types import ChatRequest, ChoiceEnded, Ended, Started, TextDelta, Usage
from mlxm.wire import sse
from tests.server.harness import CHAT, KeptLines, KeptRows, RawClient, chat_body, chat_bytes, serving, until


def payloads(stream: str) -> list[Any]:
    """The events of a stream, [DONE] as text and comments left out."""
    events = [event for event in stream.split("\n\n") if event and not event.startswith(":")]
    data = [event.rsplit("data: ", 1)[1] for event in events]
    return [line if line == "[DONE]" else json.loads(line) for line in data]


def test_whole_answer() -> None:
    """Text, finish reason and usage, in one JSON body."""

    async def scenario() -> None:
        async with serving(EchoBackend()) as server:
            response = await server.chat(content="one two three", max_tokens=2)
            assert response.status_code == 200
            assert response.headers["content-type"] == "application/json"
            answer = response.json()
            assert answer["choices"][0]["message"] == {"role": "assistant", "content": "one two", "refusal": None}
            assert answer["choices"][0]["finish_reason"] == "length"
            assert (answer["model"], answer["object"]) == (ECHO_MODEL, "chat.completion")
            assert answer["usage"]["prompt_tokens"] == 3
            assert answer["usage"]["completion_tokens"] == 2
            assert answer["usage"]["total_tokens"] == 5

    asyncio.run(scenario())


def test_stream_says_the_same() -> None:
    """The deltas join to the text of the whole answer, the last chunks carry reason and usage, then [DONE]."""

    async def scenario() -> None:
        async with serving(EchoBackend()) as server:
            whole = (await server.chat(content="a b c")).json()
            response = await server.chat(content="a b c", stream=True, stream_options={"include_usage": True})
            assert response.headers["content-type"].startswith("text/event-stream")
            *chunks, end, usage, done = payloads(response.text)
            assert done == "[DONE]"
            assert (usage["choices"], usage["usage"]) == ([], whole["usage"])
            assert end["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
            text = "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks)
            assert text == whole["choices"][0]["message"]["content"]
            assert [chunk["choices"][0]["delta"].get("role") for chunk in chunks] == ["assistant", None, None, None]

    asyncio.run(scenario())


def test_stop_and_temperature_reach_the_backend() -> None:
    """What acts in the request arrives where it acts."""

    async def scenario() -> None:
        backend = EchoBackend()
        async with serving(backend) as server:
            response = await server.chat(content="a b c", stop="b", temperature=0.5, seed=7)
            assert response.json()["choices"][0]["message"]["content"] == "a"
            assert response.json()["choices"][0]["finish_reason"] == "stop"
            (request,) = backend.requests
            assert (request.sampling.temperature, request.sampling.seed, request.stop) == (0.5, 7, ("b",))

    asyncio.run(scenario())


@pytest.mark.parametrize("stream", [True, False])
def test_ignored_fields_are_named_in_the_answer(stream: bool) -> None:  # noqa: FBT001  # named by pytest
    """A client can see which of its fields changed nothing."""

    async def scenario() -> None:
        async with serving(EchoBackend()) as server:
            response = await server.chat(user="me", metadata={"a": "b"}, stream=stream)
            assert response.headers["x-mlxm-ignored"] == "user, metadata"
            assert "x-mlxm-ignored" not in (await server.chat(stream=stream)).headers

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("named", "is_kept"),
    [
        ("my-request_1", True),
        ("x" * 64, True),
        ("x" * 65, False),
        ("two words", False),
        ("a;b", False),
        ("", False),
        (None, False),
    ],
)
def test_one_request_id_everywhere(named: str | None, is_kept: bool) -> None:  # noqa: FBT001  # named by pytest
    """The same id is in both headers, body, audit row and log, a client's own if it is harmless."""

    async def scenario() -> None:
        rows, log = KeptRows(), KeptLines()
        headers = {} if named is None else {"x-request-id": named}
        async with serving(EchoBackend(), trail=rows, log=log) as server:
            good = await server.http.post(CHAT, json=chat_body(), headers=headers)
            bad = await server.http.post(CHAT, json={}, headers=headers)
        for response in (good, bad):
            request_id = response.headers["x-request-id"]
            assert request_id == response.headers["request-id"]
            assert (request_id == named) is is_kept
            assert is_kept or (request_id.startswith("req_") and len(request_id) == 16)
        assert bad.json()["request_id"] == bad.headers["x-request-id"]
        assert [row.request_id for row in rows.rows] == [good.headers["x-request-id"], bad.headers["x-request-id"]]
        assert {line["request_id"] for line in log.lines} == {row.request_id for row in rows.rows}

    asyncio.run(scenario())


def test_two_requests_under_way_never_share_an_id() -> None:
    """A client that gives two concurrent requests one name cannot mix up their answers."""

    async def scenario() -> None:
        backend = EchoBackend(pace=partial(asyncio.sleep, 0.01))
        async with serving(backend) as server:
            headers = {"x-request-id": "same"}
            responses = await asyncio.gather(
                *(server.http.post(CHAT, json=chat_body(content=f"a b {i}"), headers=headers) for i in range(4))
            )
            assert len({request.request_id for request in backend.requests}) == 4
            assert len({response.headers["x-request-id"] for response in responses}) == 4
            texts = [response.json()["choices"][0]["message"]["content"] for response in responses]
            assert texts == [f"a b {i}" for i in range(4)]

    asyncio.run(scenario())


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("error", "status", "kind", "retry_after"),
    [
        (ModelNotFound("m", param="model"), 404, "not_found_error", None),
        (ContextTooLong("m", param="messages"), 400, "invalid_request_error", None),
        (Overloaded("m", retry_after_s=2.5), 429, "rate_limit_error", "3"),
        (OutOfMemory("m"), 503, "overloaded_error", "1"),
        (WorkerDied("m", hint="h"), 503, "overloaded_error", "1"),
    ],
)
def test_failures_before_the_first_token_have_their_status(
    error: MlxmError,
    status: int,
    kind: str,
    retry_after: str | None,
    stream: bool,  # noqa: FBT001  # named by pytest
) -> None:
    """Also a stream that fails before it began answers as a plain error."""

    async def scenario() -> None:
        rows = KeptRows()
        async with serving(ScriptedBackend(lambda _: [error]), trail=rows) as server:
            response = await server.chat(stream=stream)
            assert response.status_code == status
            body = response.json()
            assert body["error"] == {
                "type": kind,
                "message": "m" if error.hint is None else "m h",
                "code": error.code,
                "param": error.param,
            }
            assert response.headers.get("retry-after") == retry_after
            assert [(row.status, row.error_code) for row in rows.rows] == [(status, error.code)]

    asyncio.run(scenario())


@pytest.mark.parametrize("stream", [True, False])
def test_failure_in_the_middle(stream: bool) -> None:  # noqa: FBT001  # named by pytest
    """A stream that has begun ends with an error event of the same body and without [DONE]."""
    script = [Started(1), TextDelta(choice=0, text="half"), WorkerDied("The worker died.")]

    async def scenario() -> None:
        rows, log = KeptRows(), KeptLines()
        async with serving(ScriptedBackend(lambda _: script), trail=rows, log=log) as server:
            response = await server.chat(stream=stream)
            body = payloads(response.text)[-1] if stream else response.json()
            assert response.status_code == (200 if stream else 503)
            assert (body["error"]["code"], body["status"]) == ("worker_died", 503)
            assert body["request_id"] == response.headers["x-request-id"]
            if stream:
                assert "half" in response.text
                assert "event: error\n" in response.text
                assert "[DONE]" not in response.text
            assert [(row.status, row.error_code) for row in rows.rows] == [(503, "worker_died")]
            told = [line for line in log.lines if line["event"] == "chat"]
            assert [(line["level"], line["reason"]) for line in told] == [("error", "The worker died.")]
            await until(lambda: server.live.num_answers == 0)

    asyncio.run(scenario())


@pytest.mark.parametrize("is_last", [True, False])
def test_what_cannot_be_written_ends_a_stream_in_words(is_last: bool) -> None:  # noqa: FBT001  # named by pytest
    """Half a character has no bytes: the stream tells of a failure, and so does the audit row."""
    ending = [ChoiceEnded(choice=0, reason="stop"), Ended(Usage(prompt_tokens=1))]
    script = [
        Started(1),
        TextDelta(choice=0, text="t"),
        TextDelta(choice=0, text="\ud83d"),
        *(ending if is_last else []),
    ]

    async def scenario() -> None:
        rows, log = KeptRows(), KeptLines()
        async with serving(ScriptedBackend(lambda _: script), trail=rows, log=log) as server:
            response = await server.chat(stream=True)
            assert payloads(response.text)[-1]["error"]["code"] == "internal_error"
            assert "[DONE]" not in response.text
            assert [(row.status, row.error_code) for row in rows.rows] == [(500, "internal_error")]
            assert [line["event"] for line in log.lines].count("unexpected_error") == 1
            await until(lambda: server.live.num_answers == 0)

    asyncio.run(scenario())


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("num_events", [0, 2])
def test_unforeseen_failures_are_logged_and_not_shown(
    stream: bool,  # noqa: FBT001  # named by pytest
    num_events: int,
) -> None:
    """A bug's own words stay in the log, with the traceback, under the request's id."""
    script = [*[Started(1), TextDelta(choice=0, text="t")][:num_events], ValueError("a secret")]

    async def scenario() -> None:
        log = KeptLines()
        async with serving(ScriptedBackend(lambda _: script), log=log) as server:
            response = await server.chat(stream=stream)
        assert response.status_code == (200 if stream and num_events else 500)
        assert "a secret" not in response.text
        assert "internal_error" in response.text
        (line,) = [line for line in log.lines if line["event"] == "unexpected_error"]
        assert str(line["error"]) == "a secret"
        assert line["error"].__traceback__ is not None
        assert line["request_id"] == response.headers["x-request-id"]
        assert line["request_id"] in response.text

    asyncio.run(scenario())


@pytest.mark.parametrize("stream", [True, False])
def test_backend_that_just_stops(stream: bool) -> None:  # noqa: FBT001  # named by pytest
    """An answer without its last event is an error, not an answer."""

    async def scenario() -> None:
        script = [Started(1), TextDelta(choice=0, text="t")]
        async with serving(ScriptedBackend(lambda _: script)) as server:
            response = await server.chat(stream=stream)
            assert "internal_error" in response.text
            assert "[DONE]" not in response.text

    asyncio.run(scenario())


def test_silent_stream_says_that_it_lives() -> None:
    """While nothing comes, before the first event and between two, comments keep the connection open."""

    async def scenario() -> None:
        prompt_read, token_made = asyncio.Event(), asyncio.Event()
        script: list[Step] = [
            prompt_read.wait,
            Started(1),
            token_made.wait,
            TextDelta(choice=0, text="t"),
            ChoiceEnded(choice=0, reason="stop"),
            Ended(Usage()),
        ]
        async with (
            serving(ScriptedBackend(lambda _: script), limits=Limits(keep_alive_s=0.05)) as server,
            RawClient.connected(server.port) as client,
        ):
            await client.send(chat_bytes(stream=True))
            await client.read_until(sse.KEEP_ALIVE)
            prompt_read.set()
            await client.read_until(b'"assistant"')
            await client.read_until(sse.KEEP_ALIVE)
            token_made.set()
            assert b"[DONE]" in await client.read_until(b"0\r\n\r\n")

    asyncio.run(scenario())


def test_error_after_a_long_silence() -> None:
    """A stream that had to begin before its first event can still tell what went wrong."""

    async def scenario() -> None:
        script: list[Step] = [partial(asyncio.sleep, 0.1), ModelNotFound("There is no such model.")]
        async with serving(ScriptedBackend(lambda _: script), limits=Limits(keep_alive_s=0.02)) as server:
            response = await server.chat(stream=True)
            assert response.status_code == 200
            assert payloads(response.text)[-1]["error"]["code"] == "model_not_found"

    asyncio.run(scenario())


def test_fast_backend_waits_for_its_reader() -> None:
    """What a backend is ahead of its reader is bounded."""

    async def scenario() -> None:
        def script(_request: ChatRequest) -> Iterator[Step]:
            yield Started(1)
            while True:
                yield TextDelta(choice=0, text="x" * 65536)

        backend = ScriptedBackend(script)
        async with serving(backend) as server:
            async with RawClient.connected(server.port, receive_buffer_bytes=4096) as client:
                await client.send(chat_bytes(stream=True))
                seen = -1
                while backend.counts.events != seen or seen < MAX_BUFFERED:
                    seen = backend.counts.events
                    await asyncio.sleep(0.1)
                assert seen < 500
            await backend.idle.wait()

    asyncio.run(scenario())


def test_nothing_is_served_before_it_is_ready() -> None:
    """Until then a chat is told why and when to come back, and /ready says the same."""

    async def scenario() -> None:
        reasons = ["the models are waking up.", None]
        async with serving(EchoBackend(), ready=lambda: reasons[0]) as server:
            response = await server.chat()
            assert response.status_code == 503
            assert response.headers["retry-after"] == "1"
            assert "waking up" in response.json()["error"]["message"]
            ready = await server.http.get("/ready")
            assert (ready.status_code, ready.json()) == (503, {"status": "starting", "reason": reasons[0]})
            assert (await server.http.get("/health")).status_code == 200
            del reasons[0]
            ready = await server.http.get("/ready")
            assert (ready.status_code, ready.json()) == (200, {"status": "ready", "reason": None})
            assert (await server.chat()).status_code == 200

    asyncio.run(scenario())


def test_rows_tell_the_truth() -> None:
    """One row per request, with its own durations and tokens."""

    async def scenario() -> None:
        rows = KeptRows()
        async with serving(EchoBackend(pace=partial(asyncio.sleep, 0.03)), trail=rows) as server:
            await server.chat(content="a b c")
            await server.chat(content="a b", stream=True)
            await server.chat(content="a", prediction={})
        whole, stream, refused = rows.rows
        for row, num_tokens in [(whole, 3), (stream, 2)]:
            assert (row.endpoint, row.dialect, row.model) == (CHAT, "openai", ECHO_MODEL)
            assert (row.status, row.error_code) == (200, None)
            assert (row.tokens_in, row.tokens_out) == (num_tokens, num_tokens)
            assert row.ttft_s is not None
            assert 0.03 <= row.ttft_s < row.duration_s
            assert row.duration_s >= 0.03 * num_tokens
        assert (refused.status, refused.error_code, refused.ttft_s) == (400, "unsupported_parameter", None)

    asyncio.run(scenario())


def test_row_is_kept_before_the_answer_is() -> None:
    """Whoever has the whole answer can rely on its row."""

    async def scenario() -> None:
        kept = asyncio.Event()

        class SlowTrail:
            async def record(self, _row: AuditRow) -> None:
                await asyncio.sleep(0.05)
                kept.set()

        async with serving(EchoBackend(), trail=SlowTrail()) as server:
            await server.chat()
            assert kept.is_set()
            kept.clear()
            await server.chat(stream=True)
            assert kept.is_set()

    asyncio.run(scenario())


def test_broken_trail_fails_no_request() -> None:
    """A full disk is told to the log; chats go on."""

    class BrokenTrail:
        async def record(self, _row: AuditRow) -> None:
            raise StoreError("The disk is full.")

    async def scenario() -> None:
        log = KeptLines()
        async with serving(EchoBackend(), trail=BrokenTrail(), log=log) as server:
            assert (await server.chat()).status_code == 200
            assert "[DONE]" in (await server.chat(stream=True)).text
        assert [line["reason"] for line in log.lines if line["event"] == "audit_failed"] == ["The disk is full."] * 2

    asyncio.run(scenario())


def test_each_request_has_its_row_whatever_its_name(tmp_path: Path) -> None:
    """A client that gives all its requests one name hides none of them."""

    async def scenario() -> None:
        async with await Database.open(tmp_path / "private" / "mlxm.db") as database:
            audit = Audit(database)
            async with serving(EchoBackend(), trail=audit) as server:
                for _ in range(3):
                    await server.http.post(CHAT, json=chat_body(), headers={"x-request-id": "same"})
            names = [row.request_id for row in await audit.recent(10)]
            assert len(set(names)) == 3
            assert [name.partition(".")[0] for name in names] == ["same"] * 3

    asyncio.run(scenario())


def test_parallel_streams_do_not_mix() -> None:
    """Each of many streams gets its own words, all of them."""

    async def scenario() -> None:
        async with serving(EchoBackend(pace=partial(asyncio.sleep, 0.002))) as server:
            contents = [" ".join(f"{i}-{j}" for j in range(20)) for i in range(32)]
            responses = await asyncio.gather(*(server.chat(content=content, stream=True) for content in contents))
            for content, response in zip(contents, responses, strict=True):
                chunks = payloads(response.text)[:-1]
                assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == content

    asyncio.run(scenario())
