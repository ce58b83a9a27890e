import asyncio
from collections.abc import Iterator

import pytest

from mlxm.errors import Overloaded
from mlxm.server.limits import Deadline, Limits, Timeouts
from mlxm.server.live import MAX_RETRY_S, Live
from mlxm.server.models import model_routes
from mlxm.server.services import Services
from mlxm.testing.backends import EchoBackend, ScriptedBackend, Step
from mlxm.types import ChoiceEnded, Ended, Started, TextDelta, Usage
from tests.server.harness import RawClient, chat_bytes, post_bytes, serving, until, within_bound


def test_the_smaller_timeout_wins() -> None:
    """And it says which one it is."""
    timeouts = Timeouts(local_s=5, chat_s=10, completions_s=3)
    assert timeouts.chat() == Deadline(within_s=5, setting="timeouts.local_s")
    assert timeouts.completions() == Deadline(within_s=3, setting="timeouts.completions_s")


def endless(_request: object) -> Iterator[Step]:
    """An answer that begins and never ends."""
    yield Started(1)
    yield TextDelta(choice=0, text="a")
    yield asyncio.Event().wait


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_takes_too_long_ends(stream: bool) -> None:  # noqa: FBT001  # named by pytest
    """With 504, or an error event; what computes it stops."""

    async def scenario() -> None:
        backend = ScriptedBackend(endless)
        async with serving(backend, timeouts=Timeouts(chat_s=0.1)) as server:
            response = await server.chat(stream=stream)
            assert response.status_code == (200 if stream else 504)
            assert '"timed_out"' in response.text
            assert "timeouts.chat_s" in response.text
            assert "[DONE]" not in response.text
            await within_bound(backend.idle)
            assert backend.counts.cancelled == 1

    asyncio.run(scenario())


def test_too_many_requests_are_turned_away() -> None:
    """With 429 and when to come back; those under way go on, and when one has ended another may come."""

    async def scenario() -> None:
        gate = asyncio.Event()
        script: list[Step] = [Started(1), gate.wait, ChoiceEnded(choice=0, reason="stop"), Ended(Usage())]
        backend = ScriptedBackend(lambda _: script)
        async with serving(backend, limits=Limits(max_requests=2)) as server:
            waiting = [asyncio.create_task(server.chat(stream=stream)) for stream in (True, False)]
            await until(lambda: backend.counts.active == 2)
            refused = await server.chat()
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "overloaded")
            assert int(refused.headers["retry-after"]) >= 1
            assert (await server.http.get("/v1/models")).status_code == 200
            gate.set()
            assert [response.status_code for response in await asyncio.gather(*waiting)] == [200, 200]
            assert (await server.chat()).status_code == 200

    asyncio.run(scenario())


def test_when_to_come_back_follows_how_fast_requests_end() -> None:
    """A second while that is not known, and never more than a minute."""

    def retry_after_s(live: Live) -> float:
        with pytest.raises(Overloaded) as caught:
            live.admit("x", 0)
        assert caught.value.retry_after_s is not None
        return caught.value.retry_after_s

    async def scenario() -> None:
        live = Live()
        assert retry_after_s(live) == 1.0
        for number in range(3):
            with live.request(f"{number}"):
                live.admit(f"{number}", 1)
        assert 0 <= retry_after_s(live) < 1
        live._ends_s[0] -= 10_000
        assert retry_after_s(live) == MAX_RETRY_S

    asyncio.run(scenario())


def test_a_body_that_stands_still_is_given_up() -> None:
    """Long before the time for the whole of it is over."""

    async def scenario() -> None:
        async with (
            serving(EchoBackend(), limits=Limits(body_idle_s=0.1)) as server,
            RawClient.connected(server.port) as client,
        ):
            await client.send(post_bytes(b'{"a', length=100))
            assert b"408 " in await client.read_until(b"\r\n\r\n")

    asyncio.run(scenario())


def test_large_headers_are_refused() -> None:
    """Before any of them is kept for long."""

    async def scenario() -> None:
        async with serving(EchoBackend()) as server, RawClient.connected(server.port) as client:
            await client.send(post_bytes(b"{}", f"X-Large: {'x' * 64_000}"))
            assert b" 431 " in await client.read_until(b"\r\n")
            await server.assert_answers()

    asyncio.run(scenario())


def test_a_slow_reader_holds_its_place() -> None:
    """A stream counts until its last byte is sent."""

    async def scenario() -> None:
        gate = asyncio.Event()
        script: list[Step] = [Started(1), gate.wait, ChoiceEnded(choice=0, reason="stop"), Ended(Usage())]
        async with (
            serving(ScriptedBackend(lambda _: script), limits=Limits(max_requests=1)) as server,
            RawClient.connected(server.port) as client,
        ):
            await client.send(chat_bytes(stream=True))
            await client.read_until(b"assistant")
            assert (await server.chat()).status_code == 429
            gate.set()
            await client.read_until(b"[DONE]")
            await until(lambda: not server.live.request_ids)
            assert (await server.chat()).status_code == 200

    asyncio.run(scenario())


def test_a_backend_that_does_not_know_its_models_lists_none() -> None:
    """Then the routes about them are not there."""
    assert model_routes(Services(backend=EchoBackend())) == []
