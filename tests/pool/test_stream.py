import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from mlxm.errors import InternalError, WorkerDied
from mlxm.frames import Delta, RequestEnded, RequestStarted
from mlxm.pool.stream import RequestEvent, RequestStream
from mlxm.types import TokenLogprobs, Usage

STARTED = RequestStarted(request_id="a")
ENDED = RequestEnded(request_id="a", usage=Usage(completion_tokens=3))


class Watched:
    """A stream, and what it asked for."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.num_ends = 0
        self.stream = RequestStream(cancel=self.reasons.append, on_end=self._count)

    def _count(self) -> None:
        self.num_ends += 1


def delta(seq: int, text: str, *, choice: int = 0, last: bool = False) -> Delta:
    """One token's delta."""
    return Delta(
        request_id="a", choice=choice, seq=seq, text=text, token_ids=(seq,), finish_reason="stop" if last else None
    )


async def rest(stream: RequestStream) -> list[RequestEvent]:
    """All that the stream still yields."""
    return [event async for event in stream]


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run a test within bounded time."""

    async def limited() -> None:
        async with asyncio.timeout(10):
            await test

    asyncio.run(limited())


def test_a_reader_that_keeps_up_gets_every_delta() -> None:
    """As it came."""

    async def test() -> None:
        watched = Watched()
        reading = asyncio.create_task(rest(watched.stream))
        events = [STARTED, delta(0, "a"), delta(1, "b"), delta(2, "c", last=True), ENDED]
        for event in events:
            watched.stream.put(event)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert events == await reading
        assert (watched.reasons, watched.num_ends) == ([], 1)

    run(test())


def test_a_slow_reader_gets_longer_deltas() -> None:
    """One for each choice, with all tokens and the last reason; nothing is lost, and nothing piles up."""

    async def test() -> None:
        watched = Watched()
        watched.stream.put(STARTED)
        for seq in range(1000):
            watched.stream.put(delta(seq, str(seq % 10), choice=seq % 2, last=seq >= 998))
        watched.stream.put(ENDED)
        assert len(watched.stream._queue) == 4
        started, even, odd, ended = await rest(watched.stream)
        assert (started, ended) == (STARTED, ENDED)
        assert isinstance(even, Delta)
        assert isinstance(odd, Delta)
        assert (even.seq, even.choice, even.text, even.finish_reason) == (0, 0, "02468" * 100, "stop")
        assert (odd.seq, odd.choice, odd.text, odd.finish_reason) == (1, 1, "13579" * 100, "stop")
        assert even.token_ids == tuple(range(0, 1000, 2))
        parts = list(even.split())
        assert [(part.text, part.token_ids) for part in parts[:3]] == [("0", (0,)), ("2", (2,)), ("4", (4,))]
        assert [part.finish_reason for part in parts[-2:]] == [None, "stop"]
        assert len(parts) == 500
        assert list(parts[0].split()) == parts[:1]

    run(test())


def test_logprobs_are_merged_with_their_tokens() -> None:
    """Those of the prompt, which come first and without tokens, stay apart."""

    def scored(seq: int, choice: int, token_ids: tuple[int, ...]) -> Delta:
        logprobs = (TokenLogprobs(seq, b"", -0.5),)
        return Delta(request_id="a", choice=choice, seq=seq, text="", token_ids=token_ids, logprobs=logprobs)

    async def test() -> None:
        watched = Watched()
        watched.stream.put(scored(0, 0, ()))
        watched.stream.put(scored(1, 0, ()))
        for seq in range(2, 8):
            watched.stream.put(scored(seq, seq % 2, (seq,)))
        watched.stream.put(ENDED)
        found = [
            (event.choice, event.seq, event.token_ids, tuple(each.token_id for each in event.logprobs))
            for event in await rest(watched.stream)
            if isinstance(event, Delta)
        ]
        assert found == [(0, 0, (), (0, 1)), (0, 2, (2, 4, 6), (2, 4, 6)), (1, 3, (3, 5, 7), (3, 5, 7))]

    run(test())


def test_closing_early_cancels_once_and_waits_for_the_end() -> None:
    """The request is over when the worker says so, not when its reader leaves."""

    async def test() -> None:
        watched = Watched()
        watched.stream.put(STARTED)
        await watched.stream.aclose()
        await watched.stream.aclose()
        assert (watched.reasons, watched.num_ends) == (["its reader has left"], 0)
        watched.stream.put(delta(0, "late"))
        assert await rest(watched.stream) == []
        watched.stream.put(ENDED)
        watched.stream.put(ENDED)
        assert watched.num_ends == 1

    run(test())


def test_closing_after_the_end_cancels_nothing() -> None:
    """There is nothing left to cancel."""

    async def test() -> None:
        watched = Watched()
        watched.stream.put(ENDED)
        assert await rest(watched.stream) == [ENDED]
        await watched.stream.aclose()
        assert watched.reasons == []

    run(test())


def test_a_dead_worker_ends_the_stream_after_what_it_said() -> None:
    """What has arrived is read first."""

    async def test() -> None:
        watched = Watched()
        watched.stream.put(STARTED)
        watched.stream.fail(WorkerDied("It died."))
        watched.stream.fail(WorkerDied("It died again."))
        assert await anext(watched.stream) == STARTED
        with pytest.raises(WorkerDied, match=r"It died\."):
            await anext(watched.stream)
        assert (watched.reasons, watched.num_ends) == ([], 1)

    run(test())


def test_a_missing_delta_is_noticed() -> None:
    """The request fails instead of losing a piece of its answer."""

    async def test() -> None:
        watched = Watched()
        watched.stream.put(delta(0, "a"))
        watched.stream.put(delta(2, "c"))
        assert await anext(watched.stream) == delta(0, "a")
        with pytest.raises(InternalError, match="delta 1 is missing"):
            await anext(watched.stream)
        assert (watched.reasons, watched.num_ends) == (["a delta is missing"], 0)
        watched.stream.put(ENDED)
        assert watched.num_ends == 1

    run(test())
