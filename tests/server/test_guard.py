import asyncio
import json
from typing import Any

import pytest

from mlxm.errors import Overloaded
from mlxm.server.doors import Doors
from mlxm.server.guard import Guard
from mlxm.server.live import Live
from mlxm.testing.backends import EchoBackend
from tests.server.harness import KeptLines, serving

START = {"type": "http.response.start", "status": 200, "headers": []}


def scope_of(path: str = "/x", *headers: tuple[bytes, bytes]) -> dict[str, Any]:
    """A request as a server hands it on."""
    return {"type": "http", "method": "GET", "path": path, "headers": [(b"host", b"localhost"), *headers]}


async def call(app: Any, scope: dict[str, Any], *, live: Live | None = None, log: KeptLines | None = None) -> list[Any]:
    """Send a request through a guard around `app`; what comes back."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    guard = Guard(app, Live() if live is None else live, KeptLines() if log is None else log, Doors())
    await guard(scope, receive, send)  # type: ignore[arg-type]
    return sent


@pytest.mark.parametrize(
    ("error", "status", "code"), [(ValueError("secret"), 500, "internal_error"), (Overloaded("m"), 429, "overloaded")]
)
def test_what_the_framework_does_not_answer_is_answered(error: Exception, status: int, code: str) -> None:
    """Whatever comes out of the application before a response becomes one."""

    async def fail(*_: Any) -> None:
        raise error

    async def scenario() -> None:
        log = KeptLines()
        start, body = await call(fail, scope_of(), log=log)
        assert start["status"] == status
        refusal = json.loads(body["body"])
        assert refusal["error"]["code"] == code
        assert "secret" not in refusal["detail"]
        headers = dict(start["headers"])
        assert headers[b"x-request-id"] == headers[b"request-id"] == refusal["request_id"].encode()
        assert {line["request_id"] for line in log.lines} == {refusal["request_id"]}

    asyncio.run(scenario())


def test_failure_after_the_response_began_sends_nothing_more() -> None:
    """A second response inside the first would be worse than a missing end."""

    async def fail(_scope: Any, _receive: Any, send: Any) -> None:
        await send(dict(START))
        raise ValueError

    async def scenario() -> None:
        log = KeptLines()
        assert [message["type"] for message in await call(fail, scope_of(), log=log)] == ["http.response.start"]
        assert [line["event"] for line in log.lines] == ["unexpected_error", "request"]

    asyncio.run(scenario())


def test_other_traffic_passes_untouched() -> None:
    """The server's life is no request."""
    seen = []

    async def app(scope: Any, _receive: Any, _send: Any) -> None:
        seen.append(scope)

    asyncio.run(call(app, {"type": "lifespan"}))
    assert seen == [{"type": "lifespan"}]


def test_drain_refuses_all_but_probes() -> None:
    """While the server drains, only those who ask how it is are let in."""

    async def answer(_scope: Any, _receive: Any, send: Any) -> None:
        await send(dict(START))

    async def scenario() -> None:
        live = Live()
        live.is_draining = True
        assert (await call(answer, scope_of("/v1/x"), live=live))[0]["status"] == 503
        assert (await call(answer, scope_of("/health"), live=live))[0]["status"] == 200
        assert (await call(answer, scope_of("/ready"), live=live))[0]["status"] == 200

    asyncio.run(scenario())


def test_bug_in_a_handler_is_logged_and_not_shown() -> None:
    """Also what goes wrong before the backend is asked."""

    async def scenario() -> None:
        log = KeptLines()

        def fail() -> str | None:
            raise ValueError("secret")

        async with serving(EchoBackend(), ready=fail, log=log) as server:
            for response in (await server.chat(), await server.http.get("/ready")):
                assert response.status_code == 500
                assert "secret" not in response.text
                assert response.json()["request_id"] == response.headers["x-request-id"]
        errors = [line for line in log.lines if line["event"] == "unexpected_error"]
        assert [str(line["error"]) for line in errors] == ["secret", "secret"]

    asyncio.run(scenario())
