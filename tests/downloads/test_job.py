from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mlxm.downloads import Job, Progress
from mlxm.downloads.job import Pace
from mlxm.errors import DiskFull, InternalError
from mlxm.frames import Fault

START = Progress(id="dl_1", name="a/b", revision="main")


def test_a_slow_watcher_gets_the_newest_state() -> None:
    """And the last one always."""

    async def test() -> list[str]:
        job = Job(START)
        told = []
        async for progress in job.events():
            told.append(progress.state)
            if progress.state == "queued":
                job.change(state="checking")
                job.change(state="downloading")
            elif progress.state == "downloading":
                job.change(state="verifying")
                job.change(state="done", path="/x")
        assert await job.wait() == Path("/x")
        return told

    assert asyncio.run(test()) == ["queued", "downloading", "done"]


def test_waiting_raises_what_the_job_failed_with() -> None:
    """For everybody who waits, as often as they ask."""

    async def test() -> None:
        job = Job(START)
        waiting = [asyncio.create_task(job.wait()) for _ in range(2)]
        await asyncio.sleep(0)
        job.change(done_bytes=1)
        job.change(state="failed", error=Fault.of(DiskFull("full", hint="delete")))
        for error in await asyncio.gather(*waiting, job.wait(), return_exceptions=True):
            assert isinstance(error, DiskFull)
            assert error.hint == "delete"

    asyncio.run(test())


def test_a_job_without_a_reason_still_raises() -> None:
    """Nobody is left without an answer."""

    async def test() -> None:
        job = Job(START)
        job.change(state="failed")
        with pytest.raises(InternalError):
            await job.wait()

    asyncio.run(test())


def test_the_rate_is_that_of_the_last_seconds() -> None:
    """Neither the first moment nor what lay there before counts; a file that starts again starts the count again."""
    pace = Pace()
    assert pace.rate(0.0, 1000) is None
    assert pace.rate(2.0, 3000) == 1000.0
    assert pace.rate(12.0, 3000) is None
    assert pace.rate(14.0, 3000) == 0.0
    assert pace.rate(15.0, 100) is None
    assert pace.rate(16.0, 600) == 500.0
