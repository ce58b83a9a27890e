import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from mlxm.child import Child
from mlxm.errors import InternalError, ProtocolMismatch, WorkerDied
from mlxm.frames import Cancel, Hello, Step

CHILDREN = Path(__file__).parent / "pool" / "children"
FROM_CHILD = Hello | Step | Cancel


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run a test within bounded time."""

    async def limited() -> None:
        async with asyncio.timeout(30):
            await test

    asyncio.run(limited())


async def start(*acts: str, hello_timeout_s: float = 30.0, on_words: Callable[[str], None] | None = None) -> Child:
    """A child with this script."""
    environ = os.environ | {"PYTHONPATH": str(CHILDREN)}
    return await Child.start(
        "scripted",
        FROM_CHILD,
        arguments=acts,
        environ=environ,
        hello_timeout_s=hello_timeout_s,
        on_words=on_words,
    )


@asynccontextmanager
async def child_that(*acts: str) -> AsyncIterator[Child]:
    """The same, ended afterwards."""
    child = await start(*acts)
    try:
        yield child
    finally:
        await child.kill()


def test_frames_go_both_ways(is_gone: Callable[[int, float], bool]) -> None:
    """And a child that is asked to leave does."""

    async def test() -> None:
        child = await start("hello")
        frame = Cancel(request_id="a", reason="b" * 3_000_000)
        frames = child.frames()
        for _ in range(2):
            child.send(frame)
            assert frame == await anext(frames)
        assert child.is_running
        assert child.exit_code is None
        await child.stop()
        assert not child.is_running
        assert child.exit_code == 0
        assert await anext(frames, None) is None
        assert is_gone(child.pid, 0)
        child.send(frame)  # into the void
        await child.stop()

    run(test())


def test_a_child_that_says_nothing_is_given_up(is_gone: Callable[[int, float], bool]) -> None:
    """It is ended, and the error says how long it was waited for."""

    async def test() -> None:
        pids: list[int] = []
        original = Child._greet

        async def greet(child: Child, *arguments: Any) -> None:
            pids.append(child.pid)
            await original(child, *arguments)

        Child._greet = greet  # type: ignore[method-assign]
        try:
            with pytest.raises(WorkerDied, match=r"did not answer within 0\.2 s"):
                await start("silence", hello_timeout_s=0.2)
        finally:
            Child._greet = original  # type: ignore[method-assign]
        assert is_gone(pids[0], 0)

    run(test())


def test_what_a_child_says_is_passed_on_line_by_line() -> None:
    """Nothing without words, and no line without end."""
    lines: list[str] = []

    async def test() -> None:
        child = await start("hello", "flood", "words", on_words=lines.append)
        assert [frame async for frame in child.frames()] == []
        await child.death("The child")

    run(test())
    assert set(lines[0]) == {"x"}
    assert len(lines[0]) <= 5000
    assert lines[1:] == ["last words", "first line", "  last words"]


def test_a_child_that_dies_at_once_leaves_its_last_words() -> None:
    """With its exit status."""
    with pytest.raises(WorkerDied, match="scripted ended with exit code 1: last words") as caught:
        run(start("words"))  # type: ignore[arg-type]
    assert caught.value.retry_after_s is not None


def test_a_child_of_another_version_is_refused() -> None:
    """The only cure is a restart."""
    with pytest.raises(ProtocolMismatch, match=r"child process is mlxm 9\.9") as caught:
        run(start("other"))  # type: ignore[arg-type]
    assert caught.value.hint is not None
    assert "restart the server" in caught.value.hint


def test_a_child_that_greets_with_something_else_is_refused() -> None:
    """Be it a frame of another kind, or none."""
    with pytest.raises(WorkerDied):
        run(start("delta"))  # type: ignore[arg-type]
    with pytest.raises(ProtocolMismatch, match="could not be read"):
        run(start("garbage"))  # type: ignore[arg-type]


def test_a_signal_is_named() -> None:
    """Exit statuses below zero mean nothing to people."""

    async def test() -> None:
        async with child_that("hello", "abort") as child:
            assert [frame async for frame in child.frames()] == []
            error = await child.death("The child")
            assert error.message == "The child was ended by SIGABRT: it left no message."
            assert child.exit_code == -6

    run(test())


def test_a_talkative_child_is_not_blocked() -> None:
    """Only its last words are kept."""

    async def test() -> None:
        async with child_that("flood", "hello", "leave") as child:
            assert [frame async for frame in child.frames()] == []
            error = await child.death("The child")
            assert error.message == "The child ended with exit code 3: last words."
            assert len(child._last_words) < 10_000

    run(test())


def test_a_child_that_does_not_listen_is_ended() -> None:
    """After a while."""

    async def test() -> None:
        async with child_that("hello", "deaf") as child:
            await child.stop(grace_s=0.1)
            assert child.exit_code == -9

    run(test())


def test_a_start_that_is_cancelled_leaves_nothing_behind() -> None:
    """At whatever moment that happens."""

    async def test() -> None:
        before = psutil.Process().children()
        for num_turns in range(24):
            starting = asyncio.create_task(start("hello", "silence"))
            for _ in range(num_turns):
                await asyncio.sleep(0)
            starting.cancel()
            await asyncio.wait([starting])
            assert starting.cancelled()
        assert psutil.Process().children() == before

    run(test())


def test_a_program_that_cannot_be_started_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without leaving a socket open."""
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(InternalError, match="Could not start scripted"):
        run(start())  # type: ignore[arg-type]
