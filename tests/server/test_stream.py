import asyncio
import subprocess
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from mlxm.errors import Cancelled
from mlxm.server.stream import ClientGone, TokenStream, unless_gone

FLOOD = Path(__file__).parent / "children" / "flood.py"


async def stay() -> dict[str, Any]:
    """A client that never leaves."""
    await asyncio.sleep(3600)
    raise AssertionError


async def leave() -> dict[str, Any]:
    """A client that has left."""
    return {"type": "http.disconnect"}


def test_producer_that_never_waits_ends_too() -> None:
    """A connection that is closed takes everything and never makes anyone wait: the watcher must get its turn."""
    result = subprocess.run([sys.executable, str(FLOOD)], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout == "ClientGone"


def test_work_that_is_done_counts() -> None:
    """A result that is there when the client leaves is a result."""

    async def work() -> int:
        return 5

    assert asyncio.run(unless_gone(work(), leave)) == 5


def test_work_is_cancelled_and_cleans_up() -> None:
    """Whoever leaves hears nothing; whoever works may finish cleaning up."""
    cleaned = []

    async def work() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.01)
            cleaned.append(1)

    with pytest.raises(ClientGone):
        asyncio.run(unless_gone(work(), leave))
    assert cleaned == [1]


def test_error_while_cleaning_up_is_not_lost() -> None:
    """It is more than a client that left."""

    async def work() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011  # its own
        asyncio.run(unless_gone(work(), leave))


def test_cancelling_from_outside_cancels_the_work() -> None:
    """A server that ends takes all its work with it."""
    cancelled = []

    async def work() -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancelled.append(1)
            raise

    async def scenario() -> None:
        task = asyncio.create_task(unless_gone(work(), stay))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(scenario())
    assert cancelled == [1]


@pytest.mark.parametrize("is_begun", [True, False])
def test_stream_is_finished_when_sending_fails(is_begun: bool) -> None:  # noqa: FBT001  # named by pytest
    """Also a stream that could not begin closes its chunks and tells its owner."""
    seen: list[Any] = []

    async def chunks() -> AsyncGenerator[bytes, None]:
        try:
            yield b"x"
            yield b"y"
        finally:
            seen.append("closed")

    async def finish(cut_short: Cancelled | None) -> None:
        seen.append(cut_short)

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body" or not is_begun:
            raise OSError

    async def scenario() -> None:
        stream = TokenStream(chunks(), media_type="text/plain", headers={}, send_timeout_s=1, finish=finish)
        with pytest.raises(OSError):  # noqa: PT011  # its own
            await stream({"type": "http"}, stay, send)  # type: ignore[typeddict-item, arg-type]

    asyncio.run(scenario())
    assert seen == (["closed", None] if is_begun else [None])
