import asyncio
from collections.abc import Iterator
from contextlib import aclosing

import pytest

from mlxm.errors import WorkerDied
from mlxm.server.prompts import MAX_BUFFERED, complete_all
from mlxm.testing.backends import ScriptedBackend, Step
from mlxm.types import ChoiceEnded, CompletionRequest, Ended, Event, Started, TextDelta, Usage

BOUND_S = 10


def requests(num: int, *, num_choices: int = 1) -> list[CompletionRequest]:
    """Prompts of one request."""
    return [
        CompletionRequest(request_id=f"r.{n}", model="m", prompt=f"p{n}", num_choices=num_choices) for n in range(num)
    ]


async def take(backend: ScriptedBackend, asked: list[CompletionRequest]) -> list[Event]:
    """All events."""
    async with asyncio.timeout(BOUND_S), aclosing(complete_all(backend, asked)) as events:
        return [event async for event in events]


def test_choices_follow_their_prompts() -> None:
    """And what was used is summed up."""
    script: list[Step] = [
        Started(2),
        *(step for n in range(2) for step in (TextDelta(n, "t", (1,)), ChoiceEnded(n, "stop"))),
        Ended(Usage(prompt_tokens=2, completion_tokens=2, cached_tokens=1)),
    ]
    events = asyncio.run(take(ScriptedBackend(lambda _: script), requests(3, num_choices=2)))
    assert isinstance(events[0], Started)
    assert sorted(event.choice for event in events if isinstance(event, TextDelta)) == [0, 1, 2, 3, 4, 5]
    assert sum(isinstance(event, ChoiceEnded) for event in events) == 6
    assert events[-1] == Ended(Usage(prompt_tokens=6, completion_tokens=6, cached_tokens=3))


def test_one_failure_ends_all() -> None:
    """The others are cancelled, and their backend has let go of them."""

    async def scenario() -> None:
        never = asyncio.Event()

        def script(request: object) -> list[Step]:
            assert isinstance(request, CompletionRequest)
            return [Started(1), WorkerDied("gone")] if request.prompt == "p1" else [Started(1), never.wait]

        backend = ScriptedBackend(script)
        with pytest.raises(WorkerDied):
            await take(backend, requests(3))
        assert (backend.counts.failed, backend.counts.cancelled, backend.counts.active) == (1, 2, 0)

    asyncio.run(scenario())


def test_closing_it_cancels_every_one() -> None:
    """A client that left wants none of them."""

    async def scenario() -> None:
        backend = ScriptedBackend(lambda _: [Started(1), TextDelta(0, "a"), asyncio.Event().wait])
        async with asyncio.timeout(BOUND_S), aclosing(complete_all(backend, requests(2))) as events:
            async for event in events:
                if isinstance(event, TextDelta):
                    break
        assert (backend.counts.cancelled, backend.counts.active) == (2, 0)

    asyncio.run(scenario())


def test_a_backend_that_is_ahead_waits() -> None:
    """Of what nobody has taken yet there is never much."""

    async def scenario() -> None:
        def script(_request: object) -> Iterator[Step]:
            yield Started(1)
            while True:
                yield TextDelta(0, "a")

        backend = ScriptedBackend(script)
        async with asyncio.timeout(BOUND_S), aclosing(complete_all(backend, requests(2))) as events:
            await anext(events)
            await anext(events)
            for _ in range(100):
                await asyncio.sleep(0)
            assert backend.counts.events < 3 * MAX_BUFFERED

    asyncio.run(scenario())


def test_prompts_whose_answers_just_stop_have_no_last_event() -> None:
    """Then the whole has none either, which is told as an error."""
    backend = ScriptedBackend(lambda _: [Started(1), TextDelta(0, "a")])
    events = asyncio.run(take(backend, requests(2)))
    assert not any(isinstance(event, Ended) for event in events)
