import asyncio
from contextlib import aclosing

import pytest

from mlxm.errors import ModelNotFound, WorkerDied
from mlxm.testing.backends import ECHO_MODEL, EchoBackend, ScriptedBackend
from mlxm.types import ChatRequest, ChoiceEnded, Ended, Event, Message, Started, TextDelta, TextPart, Usage


def request(text: str = "one two", *, model: str = ECHO_MODEL, max_tokens: int | None = None) -> ChatRequest:
    """A small request."""
    message = Message(role="user", content=(TextPart(text),))
    return ChatRequest(request_id="r", model=model, messages=(message,), max_tokens=max_tokens)


async def ask(backend: ScriptedBackend, chat: ChatRequest) -> list[Event]:
    """All events of one chat."""
    async with aclosing(backend.chat(chat)) as events:
        return [event async for event in events]


def test_echo() -> None:
    """Words come back one by one, counted."""
    assert asyncio.run(ask(EchoBackend(), request("one  two"))) == [
        Started(2),
        TextDelta(choice=0, text="one", token_ids=(0,)),
        TextDelta(choice=0, text=" two", token_ids=(1,)),
        ChoiceEnded(choice=0, reason="stop"),
        Ended(Usage(prompt_tokens=2, completion_tokens=2)),
    ]


def test_echo_obeys_the_limit() -> None:
    """The last words are missing, and the reason says why."""
    events = asyncio.run(ask(EchoBackend(), request(max_tokens=1)))
    assert events[-2:] == [
        ChoiceEnded(choice=0, reason="length"),
        Ended(Usage(prompt_tokens=2, completion_tokens=1)),
    ]


def test_echo_knows_its_own_name_only() -> None:
    """Any other model is not found."""
    with pytest.raises(ModelNotFound):
        asyncio.run(ask(EchoBackend(), request(model="other")))


def test_script_waits_fails_and_is_counted() -> None:
    """Waits are awaited, exceptions raised, and each way to end has its count."""

    async def scenario() -> None:
        waited = asyncio.Event()

        async def wait() -> None:
            waited.set()

        ended = asyncio.Event()

        async def at_end() -> None:
            ended.set()

        scripts = iter([[Started(1), wait, Ended(Usage())], [Started(1), WorkerDied("x")], [Started(1), Started(2)]])
        backend = ScriptedBackend(lambda _: next(scripts), at_end=at_end)
        await backend.start()
        assert backend.ready() is None
        assert len(await ask(backend, request())) == 2
        assert waited.is_set()
        assert ended.is_set()
        with pytest.raises(WorkerDied):
            await ask(backend, request())
        events = backend.chat(request())
        await anext(events)
        assert (backend.counts.active, backend.idle.is_set()) == (1, False)
        await events.aclose()
        counts = backend.counts
        assert (counts.started, counts.finished, counts.failed, counts.cancelled) == (3, 1, 1, 1)
        assert (counts.active, counts.events, backend.idle.is_set()) == (0, 4, True)
        assert len(backend.requests) == 3
        assert not backend.is_closed
        await backend.close()
        assert backend.is_closed

    asyncio.run(scenario())
