import asyncio
import random
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import pytest

from mlxm.server.limits import Limits
from mlxm.testing.backends import Script, ScriptedBackend, Step, echo
from mlxm.types import ChatRequest, ChoiceEnded, Ended, Started, TextDelta, Usage
from tests.server.harness import KeptRows, RawClient, Running, chat_bytes, serving, until, within_bound

BIG_TEXT = "x" * 65536
LEAVE: dict[str, Callable[[RawClient], None]] = {
    "fin": RawClient.close,
    "rst": RawClient.reset,
    "half-close": RawClient.half_close,
}


def asleep(_request: ChatRequest) -> Iterator[Step]:
    """One token, and then nothing for ever."""
    yield Started(1)
    yield TextDelta(choice=0, text="token")
    yield partial(asyncio.sleep, 3600)


def ticking(_request: ChatRequest) -> Iterator[Step]:
    """A token every few milliseconds, for ever."""
    yield Started(1)
    while True:
        yield TextDelta(choice=0, text="token")
        yield partial(asyncio.sleep, 0.005)


def flooding(_request: ChatRequest) -> Iterator[Step]:
    """64 kB as fast as they are taken, for ever."""
    yield Started(1)
    while True:
        yield TextDelta(choice=0, text=BIG_TEXT)
        yield partial(asyncio.sleep, 0)


def blocked(queue: asyncio.Queue[str]) -> Script:
    """One token, and then a queue into which nothing is ever put."""

    def script(_request: ChatRequest) -> Iterator[Step]:
        yield Started(1)
        yield TextDelta(choice=0, text="token")
        yield queue.get

    return script


def only_once(script: Script) -> Script:
    """`script` for the first request and an echo for those that look whether the server still serves."""
    scripts = iter([script])

    def choose(request: ChatRequest) -> Iterable[Step]:
        return next(scripts, echo)(request)

    return choose


async def assert_gone(server: Running, backend: ScriptedBackend, rows: KeptRows, num_tasks: int) -> None:
    """The backend has let go, the row is true, nothing is left behind, and the server serves on."""
    await within_bound(rows.arrived)
    await within_bound(backend.idle)
    assert (backend.counts.cancelled, backend.counts.active) == (1, 0)
    assert [(row.status, row.error_code) for row in rows.rows] == [(499, "cancelled")]
    assert server.live.num_answers == 0
    await settled(server, num_tasks)
    await server.assert_answers()


async def settled(server: Running, num_tasks: int) -> None:
    """Wait until no request is left, and look for left tasks."""
    await until(lambda: not server.live.request_ids and len(asyncio.all_tasks()) <= num_tasks)


@pytest.mark.parametrize(
    ("producer", "leave"),
    [("asleep", "fin"), ("ticking", "fin"), ("blocked", "fin"), ("blocked", "rst"), ("blocked", "half-close")],
)
def test_stream_ends_when_client_leaves(producer: str, leave: str) -> None:
    """Whatever the producer waits for and however the client leaves, the producer is cancelled at once."""

    async def scenario() -> None:
        scripts = {"asleep": asleep, "ticking": ticking, "blocked": blocked(asyncio.Queue())}
        backend, rows = ScriptedBackend(only_once(scripts[producer])), KeptRows()
        async with serving(backend, trail=rows) as server:
            await server.http.get("/health")
            num_tasks = len(asyncio.all_tasks())
            async with RawClient.connected(server.port) as client:
                await client.send(chat_bytes(stream=True))
                await client.read_until(b'"token"')
                LEAVE[leave](client)
                await assert_gone(server, backend, rows, num_tasks)

    asyncio.run(scenario())


def test_cleaning_up_may_wait() -> None:
    """A producer that awaits something while it is cancelled gets to the end of it."""

    async def scenario() -> None:
        cleaned = asyncio.Event()

        async def clean_up() -> None:
            await asyncio.sleep(0.05)
            cleaned.set()

        backend, rows = ScriptedBackend(only_once(asleep), at_end=clean_up), KeptRows()
        async with serving(backend, trail=rows) as server:
            await server.http.get("/health")
            num_tasks = len(asyncio.all_tasks())
            async with RawClient.connected(server.port) as client:
                await client.send(chat_bytes(stream=True))
                await client.read_until(b'"token"')
                client.close()
                await within_bound(cleaned)
                await assert_gone(server, backend, rows, num_tasks)

    asyncio.run(scenario())


@pytest.mark.parametrize("leave", LEAVE)
def test_whole_answer_is_not_computed_for_nobody(leave: str) -> None:
    """Without streaming nothing is sent that could fail: the disconnect itself is watched."""

    async def scenario() -> None:
        backend, rows = ScriptedBackend(only_once(ticking)), KeptRows()
        async with serving(backend, trail=rows) as server:
            await server.http.get("/health")
            num_tasks = len(asyncio.all_tasks())
            async with RawClient.connected(server.port) as client:
                await client.send(chat_bytes())
                await until(lambda: backend.counts.events >= 3)
                LEAVE[leave](client)
                await assert_gone(server, backend, rows, num_tasks)

    asyncio.run(scenario())


@pytest.mark.parametrize("stream", [True, False])
def test_client_may_leave_before_the_first_event(stream: bool) -> None:  # noqa: FBT001  # pytest passes it by name
    """A prompt that nobody waits for any more is given up, before anything of the answer exists."""

    async def scenario() -> None:
        begun = asyncio.Event()

        async def wait() -> None:
            begun.set()
            await asyncio.sleep(3600)

        backend, rows = ScriptedBackend(only_once(lambda _: [wait])), KeptRows()
        async with serving(backend, trail=rows) as server:
            await server.http.get("/health")
            num_tasks = len(asyncio.all_tasks())
            async with RawClient.connected(server.port) as client:
                await client.send(chat_bytes(stream=stream))
                await within_bound(begun)
                client.close()
                await assert_gone(server, backend, rows, num_tasks)

    asyncio.run(scenario())


def test_flooding_producer_ends_when_client_closes() -> None:
    """A full connection that is closed must not leave a producer hanging, or spinning."""

    async def scenario() -> None:
        backend, rows = ScriptedBackend(only_once(flooding)), KeptRows()
        async with serving(backend, trail=rows) as server:
            await server.http.get("/health")
            num_tasks = len(asyncio.all_tasks())
            async with RawClient.connected(server.port, receive_buffer_bytes=4096) as client:
                await client.send(chat_bytes(stream=True))
                await blocked_by_reader(backend)
                client.close()
                await assert_gone(server, backend, rows, num_tasks)

    asyncio.run(scenario())


def test_stalled_reader_is_cancelled() -> None:
    """A client that stays and does not read is given up after the send timeout, and sees that the end is missing."""

    async def scenario() -> None:
        backend, rows = ScriptedBackend(only_once(flooding)), KeptRows()
        async with serving(backend, trail=rows, limits=Limits(send_timeout_s=0.3)) as server:
            await server.http.get("/health")
            num_tasks = len(asyncio.all_tasks())
            async with RawClient.connected(server.port, receive_buffer_bytes=4096) as client:
                await client.send(chat_bytes(stream=True))
                await assert_gone(server, backend, rows, num_tasks)
                received = await client.read_to_end()
                assert not received.endswith(b"0\r\n\r\n")
                assert b"[DONE]" not in received
                client.close()

    asyncio.run(scenario())


async def blocked_by_reader(backend: ScriptedBackend) -> None:
    """Wait until a flooding producer makes no progress."""
    seen = -1
    async with asyncio.timeout(10):
        while backend.counts.events != seen or seen < 10:
            seen = backend.counts.events
            await asyncio.sleep(0.1)


def test_slow_but_reading_client_is_kept() -> None:
    """The send timeout is for clients that read nothing at all, not for slow ones."""

    async def scenario() -> None:
        text = TextDelta(choice=0, text=BIG_TEXT)
        backend = ScriptedBackend(
            lambda _: [Started(1), *[text] * 30, ChoiceEnded(choice=0, reason="stop"), Ended(Usage())]
        )
        async with (
            serving(backend, limits=Limits(send_timeout_s=0.5)) as server,
            RawClient.connected(server.port, receive_buffer_bytes=4096) as client,
        ):
            await client.send(chat_bytes(stream=True))
            assert b"data: [DONE]" in await client.read_until(b"0\r\n\r\n")
            assert backend.counts.finished == 1

    asyncio.run(scenario())


@pytest.mark.slow
def test_dropped_streams_leave_nothing(long_soak: bool) -> None:  # noqa: FBT001  # a fixture
    """Streams dropped at random moments leave no request, no task and no descriptor."""
    num_streams = 10_000 if long_soak else 300

    async def scenario() -> None:
        backend = ScriptedBackend(ticking)
        async with serving(backend) as server:
            await server.http.get("/health")
            num_tasks, num_descriptors = len(asyncio.all_tasks()), count_descriptors()
            room = asyncio.Semaphore(30)
            await asyncio.gather(*(drop_stream(server, room, random.Random(seed)) for seed in range(num_streams)))
            await within_bound(backend.idle)
            assert backend.counts.started == backend.counts.cancelled
            assert backend.counts.started > num_streams / 4
            assert (backend.counts.active, server.live.num_answers) == (0, 0)
            await settled(server, num_tasks)
            await until(lambda: count_descriptors() <= num_descriptors)

    asyncio.run(scenario())


async def drop_stream(server: Running, room: asyncio.Semaphore, dice: random.Random) -> None:
    """Open a stream, read for a random while, leave in a random way."""
    async with room, RawClient.connected(server.port) as client:
        await client.send(chat_bytes(stream=dice.random() < 0.8))
        await asyncio.sleep(dice.random() * 0.05)
        dice.choice([RawClient.close, RawClient.reset])(client)


def count_descriptors() -> int:
    """Open files and sockets of this process."""
    return len(list(Path("/dev/fd").iterdir()))
