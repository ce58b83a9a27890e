from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from mlxm.downloads import Downloads, Progress
from mlxm.downloads.downloads import _news
from mlxm.downloads.frames import Waiting
from mlxm.downloads.job import Pace
from mlxm.errors import Cancelled, InvalidRequest, MlxmError, NotFound, ProtocolMismatch
from mlxm.frames import Fault, Hello
from mlxm.testing.fake_hub import FakeHub, Mishap
from tests.downloads.harness import (
    FOLDER,
    LARGE,
    NAME,
    model_files,
    place_of,
    pull,
    snapshot_of,
    wanted_of,
    with_downloads,
)


def test_a_model_is_fetched_verified_and_found_by_its_branch(hub: FakeHub, cache: Path) -> None:
    """What runs programs stays away; a second pull fetches nothing."""
    files = model_files(shards=2)
    commit = hub.add(NAME, files)
    progress = pull(hub, cache)
    assert wanted_of(files) == snapshot_of(progress)
    assert progress.state == "done"
    assert progress.done_bytes == progress.total_bytes == progress.fetched_bytes == progress.verified_bytes
    assert (progress.num_files, progress.num_done_files, progress.commit) == (6, 6, commit)
    assert (cache / FOLDER / "refs" / "main").read_text() == commit
    fetched = hub.count("*/resolve/*") + hub.count(LARGE)
    again = pull(hub, cache)
    assert (again.state, again.fetched_bytes, again.path) == ("done", 0, progress.path)
    assert hub.count("*/resolve/*") + hub.count(LARGE) == fetched


def test_the_events_tell_the_whole_story(hub: FakeHub, cache: Path) -> None:
    """Whoever comes late hears the present state first; bytes and files only grow."""
    hub.add(NAME, model_files(shards=2))
    hub.break_with(Mishap(LARGE, method="GET", times=None, bytes_per_s=400_000))

    async def use(downloads: Downloads) -> list[Progress]:
        job = downloads.start(NAME)
        told = [progress async for progress in job.events()]
        assert [progress async for progress in job.events()] == [job.progress] == [told[-1]]
        assert downloads.list() == (job.progress,)
        return told

    told = with_downloads(hub, cache, use)
    states = list(dict.fromkeys(progress.state for progress in told))
    assert states == ["queued", "checking", "downloading", "verifying", "done"]
    assert [progress.done_bytes for progress in told] == sorted(progress.done_bytes for progress in told)
    moving = [progress for progress in told if progress.rate_bytes_per_s]
    assert {"model-00000.safetensors", "model-00001.safetensors"} == {name for each in moving for name in each.files}
    assert all(progress.eta_s is not None and progress.eta_s >= 0 for progress in moving)
    assert any(0 < progress.done_bytes < (progress.total_bytes or 0) for progress in moving)


def test_fifty_askers_share_one_job(hub: FakeHub, cache: Path) -> None:
    """And one of them giving up does not end it for the others."""
    hub.add(NAME, model_files())

    async def use(downloads: Downloads) -> None:
        jobs = [downloads.start(NAME) for _ in range(50)]
        assert len({id(job) for job in jobs}) == 1
        waiting = [asyncio.create_task(job.wait()) for job in jobs]
        waiting[0].cancel()
        paths = await asyncio.gather(*waiting[1:])
        assert set(paths) == {Path(str(jobs[0].progress.path))}

    with_downloads(hub, cache, use)
    assert hub.count(LARGE, method="GET") == 2
    assert hub.count("/api/models/*") == 1


def test_a_cancelled_job_stops_its_process_and_its_traffic(hub: FakeHub, cache: Path) -> None:
    """At once; what was not whole leaves nothing on the disk, what was whole is not fetched again."""
    files = model_files(shards=2, shard_bytes=300_000)
    hub.add(NAME, files)
    hub.break_with(Mishap(LARGE, method="GET", times=None, bytes_per_s=100_000))

    async def use(downloads: Downloads) -> None:
        job = downloads.start(NAME)
        async for progress in job.events():
            if any(name.endswith("safetensors") for name in progress.files) and progress.done_bytes > 50_000:
                break
        async with asyncio.timeout(5):
            ended = await downloads.cancel(job.id)
        assert ended.state == "cancelled"
        with pytest.raises(Cancelled, match=NAME):
            await job.wait()
        sent = hub.sent_bytes()
        await asyncio.to_thread(hub.stopping.wait, 1.0)
        assert hub.sent_bytes() - sent <= 10_000  # what was on its way
        assert await downloads.cancel(job.id) == ended
        assert list((cache / FOLDER / "blobs").glob("*.incomplete")) == []
        whole = hub.count("*/resolve/*/config.json", method="GET")
        hub.mend()
        resumed = downloads.resume(job.id)
        assert resumed.id == job.id
        await resumed.wait()
        assert wanted_of(files) == snapshot_of(resumed.progress)
        assert hub.count("*/resolve/*/config.json", method="GET") == whole == 1

    with_downloads(hub, cache, use)


def test_a_job_that_has_not_begun_can_be_cancelled(hub: FakeHub, cache: Path) -> None:
    """Also before it was ever given a turn, and while others are before it in the queue."""
    hub.add(NAME, model_files())
    gate = threading.Event()
    hub.break_with(Mishap("/api/models/*", hold=gate))

    async def use(downloads: Downloads) -> None:
        first, second = downloads.start(NAME), downloads.start("mlx-community/other")
        third = downloads.start("mlx-community/third")
        assert (await downloads.cancel(third.id)).state == "cancelled"
        async for progress in second.events():
            if progress.waits_for is not None:
                assert (progress.state, progress.waits_for) == ("queued", "other downloads")
                break
        assert (await downloads.cancel(second.id)).state == "cancelled"
        gate.set()
        await first.wait()

    with_downloads(hub, cache, use, num_jobs=1)


def test_closing_ends_every_job(hub: FakeHub, cache: Path) -> None:
    """Nobody waits for ever."""
    hub.add(NAME, model_files())
    hub.break_with(Mishap(LARGE, method="GET", times=None, bytes_per_s=1000))

    async def use(downloads: Downloads) -> list[Progress]:
        jobs = [downloads.start(NAME), downloads.start("mlx-community/missing")]
        async for progress in jobs[0].events():
            if progress.files:
                break
        await downloads.close()
        return [job.progress for job in jobs]

    first, second = with_downloads(hub, cache, use)
    assert (first.state, second.state) == ("cancelled", "failed")


def test_everything_can_be_watched_at_once(hub: FakeHub, cache: Path) -> None:
    """Each job as it stands, then the changes of all of them."""
    hub.add(NAME, model_files())

    async def use(downloads: Downloads) -> None:
        watched = downloads.watch()
        job = downloads.start(NAME)
        first = await anext(watched)
        assert (first.id, first.state) == (job.id, "queued")
        async for progress in watched:
            if progress.is_over:
                assert progress == job.progress
                break
        await watched.aclose()

    with_downloads(hub, cache, use)


def test_what_is_fetched_elsewhere_is_waited_for(hub: FakeHub, cache: Path) -> None:
    """Another process, another part of this one: the lock of the model is held by whoever fetches."""
    files = model_files()
    hub.add(NAME, files)
    gate = threading.Event()
    hub.break_with(Mishap(place_of(files["model-00000.safetensors"]), method="GET", hold=gate))

    async def use(downloads: Downloads) -> tuple[Progress, Progress]:
        first = downloads.start(NAME)
        async for progress in first.events():
            if "model-00000.safetensors" in progress.files:
                break
        async with Downloads(downloads._hub, downloads._options) as others:
            second = others.start(NAME)
            async for progress in second.events():
                if progress.waits_for is not None:
                    break
            gate.set()
            await asyncio.gather(first.wait(), second.wait())
            return progress, second.progress

    waiting, end = with_downloads(hub, cache, use)
    assert waiting.state == "queued"
    assert waiting.waits_for is not None
    assert waiting.waits_for.startswith("another process (pid ")
    assert (end.state, end.waits_for, end.fetched_bytes) == ("done", None, 0)


def test_a_process_that_talks_out_of_turn_is_not_understood() -> None:
    """Two versions of mlxm, perhaps."""
    hello = Hello(protocol="x", version="1", pid=1)
    with pytest.raises(ProtocolMismatch, match="Hello"):
        _news(hello, Pace(), Progress(id="dl_1", name=NAME, revision="main"))
    nobody = _news(Waiting(pid=None), Pace(), Progress(id="dl_1", name=NAME, revision="main"))
    assert nobody["waits_for"] == "another process that fetches the same model"


def test_a_plan_fetches_nothing(hub: FakeHub, cache: Path) -> None:
    """It says what would be fetched, what is there, and whether there is room."""
    hub.add(NAME, model_files())

    async def use(downloads: Downloads) -> None:
        plan = await downloads.plan(NAME)
        assert [file.path for file in plan.files if not file.is_present] == sorted(wanted_of(model_files()))
        assert plan.needed_bytes == plan.total_bytes == sum(map(len, wanted_of(model_files()).values()))
        assert plan.has_room
        assert hub.count(LARGE) == hub.count("*/resolve/*") == 0
        await downloads.start(NAME, include=["*.json"]).wait()
        later = await downloads.plan(NAME, exclude=["README*"])
        assert {file.path: file.is_present for file in later.files} == {
            "config.json": True,
            "tokenizer.json": True,
            "tokenizer_config.json": True,
            "model-00000.safetensors": False,
        }
        assert later.needed_bytes == 200_000

    with_downloads(hub, cache, use)
    assert hub.count(LARGE, method="GET") == 1


def test_what_cannot_be_asked_for_is_refused_at_once(hub: FakeHub, cache: Path) -> None:
    """A name that is none, a pattern for programs, a job that nobody knows."""

    async def use(downloads: Downloads) -> None:
        with pytest.raises(InvalidRequest):
            downloads.start("../../etc/passwd")
        with pytest.raises(InvalidRequest, match=r"does not fetch \*\.bin"):
            downloads.start(NAME, include=["*.bin"])
        with pytest.raises(NotFound, match="dl_nothing"):
            downloads.get("dl_nothing")

    with_downloads(hub, cache, use)
    assert hub.requests == []


def test_jobs_that_are_over_are_forgotten_in_the_end(
    hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest first."""
    monkeypatch.setattr("mlxm.downloads.downloads._MAX_JOBS", 2)

    async def use(downloads: Downloads) -> tuple[str, ...]:
        for name in ("a/a", "b/b", "c/c"):
            with pytest.raises(MlxmError):
                await downloads.start(name).wait()
        return tuple(progress.name for progress in downloads.list())

    assert with_downloads(hub, cache, use, offline=True) == ("b/b", "c/c")


def test_a_job_that_ends_in_a_way_nobody_thought_of_is_told_as_failed(
    hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistake of ours must not leave anybody waiting."""

    async def use(downloads: Downloads) -> Fault | None:
        def broken(*_: object) -> None:
            raise AssertionError

        monkeypatch.setattr(downloads, "_bring", broken)
        job = downloads.start(NAME)
        task = downloads._tasks[job.id]
        await asyncio.wait([task])
        assert isinstance(task.exception(), AssertionError)
        return job.progress.error

    error = with_downloads(hub, cache, use)
    assert error is not None
    assert error.code == "internal_error"
