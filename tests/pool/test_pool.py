import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mlxm.errors import Conflict, Draining, ModelBroken, WorkerDied
from mlxm.frames import Delta, Generate, RequestEnded
from mlxm.pool import launch
from mlxm.pool.launch import Workers
from mlxm.pool.options import Parts, PoolOptions
from mlxm.pool.pool import LocalModel, Pool
from mlxm.pool.stream import RequestEvent
from mlxm.pool.worker import Worker, WorkerOptions
from mlxm.types import Sampling

LIMIT_S = 60.0


class Starts:
    """Counts the workers that are started; each of them is a real one."""

    def __init__(self) -> None:
        self.num = 0

    async def start(self, name: str, *rest: Any) -> Worker:
        """Start one more."""
        self.num += 1
        return await Worker.start(name, *rest)


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> Starts:
    """Every start of a worker."""
    counting = Starts()
    monkeypatch.setattr(launch, "Worker", counting)
    return counting


@pytest.fixture
def tiny(tiny_folder: Path) -> LocalModel:
    """The built-in model."""
    return LocalModel(name="tiny", folder=tiny_folder, context_length=8192)


@pytest.fixture
def broken(tmp_path: Path) -> LocalModel:
    """A model without files."""
    return LocalModel(name="broken", folder=tmp_path, context_length=None)


def make_pool(options: WorkerOptions, **others: Any) -> Pool:
    """A pool of real workers, none of them spare."""
    return Pool(PoolOptions(**{"has_spare": False, "retry_s": 0.2, **others}), Parts(launcher=Workers(options)))


@asynccontextmanager
async def open_pool(options: WorkerOptions, **others: Any) -> AsyncIterator[Pool]:
    """A pool that is closed afterwards."""
    pool = make_pool(options, **others)
    try:
        yield pool
    finally:
        await pool.close()


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run a test within bounded time."""

    async def limited() -> None:
        async with asyncio.timeout(LIMIT_S):
            await test

    asyncio.run(limited())


def order(request_id: str, *, max_tokens: int = 2) -> Generate:
    """A short request."""
    return Generate(
        request_id=request_id, prompt_ids=(300, 301), sampling=Sampling(temperature=0.0), max_tokens=max_tokens
    )


async def answer(pool: Pool, model: LocalModel, request: Generate) -> RequestEnded:
    """The end of a whole answer."""
    events = [event async for event in pool.generate(model, request)]
    assert isinstance(events[-1], RequestEnded)
    return events[-1]


async def _rest(events: AsyncIterator[RequestEvent]) -> None:
    async for _ in events:
        pass


def pids(pool: Pool) -> list[int]:
    """The processes of models that are in memory."""
    return [slot.worker.pid for slot in pool.slots() if slot.worker is not None and slot.worker.end is None]


def leases(pool: Pool) -> dict[str, int]:
    """How many requests hold each loaded model."""
    return {model.model: model.in_use for model in pool.models() if model.state == "ready"}


def test_fifty_requests_for_a_cold_model_load_it_once(options: WorkerOptions, starts: Starts, tiny: LocalModel) -> None:
    """All of them are answered, and hold nothing afterwards."""

    async def test() -> None:
        async with open_pool(options) as pool:
            asked = [answer(pool, tiny, order(str(number))) for number in range(50)]
            ends = await asyncio.gather(*asked)
            assert [end.usage.completion_tokens for end in ends] == [2] * 50
            assert starts.num == 1
            assert leases(pool) == {"tiny": 0}
            (row,) = pool.models()
            assert (row.state, row.context, row.requests) == ("ready", 8192, 50)
            assert row.blocks_total is not None
            assert row.total_bytes == row.done_bytes
            assert row.ttft_p50_s is not None

    run(test())


def test_a_failed_load_fails_all_who_wait(options: WorkerOptions, starts: Starts, broken: LocalModel) -> None:
    """With its reason, which is remembered for a while; then the next request tries again."""

    async def test() -> None:
        async with open_pool(options, retry_s=0.5) as pool:
            asked = [answer(pool, broken, order(str(number))) for number in range(5)]
            errors = await asyncio.gather(*asked, return_exceptions=True)
            assert [str(error) for error in errors] == [f"{broken.folder}/config.json is missing."] * 5
            with pytest.raises(ModelBroken, match="is missing"):
                await answer(pool, broken, order("at once"))
            assert starts.num == 1
            assert [(row.state, row.reserved_bytes) for row in pool.models()] == [("failed", 0)]
            await asyncio.sleep(0.5)
            with pytest.raises(ModelBroken):
                await answer(pool, broken, order("later"))
            assert starts.num == 2

    run(test())


def test_a_waiter_that_leaves_does_not_end_the_load(options: WorkerOptions, starts: Starts, tiny: LocalModel) -> None:
    """Not even when it was the only one."""

    async def test() -> None:
        async with open_pool(options) as pool:
            waiting = asyncio.create_task(answer(pool, tiny, order("a")))
            await asyncio.sleep(0.01)
            waiting.cancel()
            await asyncio.wait([waiting])
            assert waiting.cancelled()
            await answer(pool, tiny, order("b"))
            assert starts.num == 1
            assert leases(pool) == {"tiny": 0}

    run(test())


def test_a_lease_is_held_until_the_worker_is_done(options: WorkerOptions, tiny: LocalModel) -> None:
    """Longer than by its reader, if that one leaves early."""

    async def test() -> None:
        async with open_pool(options) as pool:
            async with aclosing(pool.generate(tiny, order("a", max_tokens=4000))) as events:
                while not isinstance(await anext(events), Delta):
                    pass
                assert leases(pool) == {"tiny": 1}
            assert leases(pool) == {"tiny": 1}
            await answer(pool, tiny, order("b"))
            assert leases(pool) == {"tiny": 0}

    run(test())


def test_after_a_crash_the_next_request_gets_a_new_worker(
    options: WorkerOptions, starts: Starts, tiny: LocalModel
) -> None:
    """Those that were running are told."""

    async def test() -> None:
        async with open_pool(options) as pool:
            events = pool.generate(tiny, order("a", max_tokens=4000))
            while not isinstance(await anext(events), Delta):
                pass
            (pid,) = pids(pool)
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(WorkerDied, match="SIGKILL"):
                await _rest(events)
            assert pids(pool) == []
            await answer(pool, tiny, order("b"))
            assert starts.num == 2
            assert leases(pool) == {"tiny": 0}

    run(test())


def test_a_request_that_cannot_be_sent_holds_nothing(options: WorkerOptions, tiny: LocalModel) -> None:
    """Its lease is given back at once."""

    async def test() -> None:
        async with open_pool(options) as pool:
            first = pool.generate(tiny, order("a", max_tokens=4000))
            await anext(first)
            with pytest.raises(Conflict):
                await answer(pool, tiny, order("a"))
            assert leases(pool) == {"tiny": 1}
            await first.aclose()

    run(test())


def test_another_folder_is_loaded_anew(
    options: WorkerOptions, starts: Starts, tiny: LocalModel, tmp_path: Path
) -> None:
    """Who holds the old one is answered by it to the end; then it goes, and only the new one is left."""
    pulled = msgspec.structs.replace(tiny, folder=shutil.copytree(tiny.folder, tmp_path / "pulled"))

    async def test() -> None:
        async with open_pool(options) as pool:
            first = pool.generate(tiny, order("a", max_tokens=60))
            await anext(first)
            (old,) = pids(pool)
            await answer(pool, pulled, order("b"))
            new = next(pid for pid in pids(pool) if pid != old)
            await _rest(first)
            while old in pids(pool):  # noqa: ASYNC110  # nobody tells
                await asyncio.sleep(0.01)
            assert (pids(pool), leases(pool)) == ([new], {"tiny": 0})
            await answer(pool, pulled, order("c"))
            assert starts.num == 2

    run(test())


def test_closing_ends_old_workers_too(
    options: WorkerOptions, tiny: LocalModel, tmp_path: Path, is_gone: Callable[[int, float], bool]
) -> None:
    """Also those that somebody still holds."""
    pulled = msgspec.structs.replace(tiny, folder=shutil.copytree(tiny.folder, tmp_path / "pulled"))

    async def test() -> None:
        async with open_pool(options) as pool:
            first = pool.generate(tiny, order("a", max_tokens=4000))
            await anext(first)
            await answer(pool, pulled, order("b"))
            told = pids(pool)
        assert len(told) == 2
        assert all(is_gone(pid, 0) for pid in told)
        with pytest.raises(Draining):
            await _rest(first)

    run(test())


def test_closing_ends_everything(
    options: WorkerOptions, tiny: LocalModel, is_gone: Callable[[int, float], bool]
) -> None:
    """What runs, what loads, and what comes later fails with Draining."""

    async def test() -> None:
        pool = make_pool(options)
        running = pool.generate(tiny, order("a", max_tokens=4000))
        await anext(running)
        cold = LocalModel(name="cold", folder=tiny.folder, context_length=None)
        loading = asyncio.create_task(answer(pool, cold, order("b")))
        await asyncio.sleep(0.1)
        told = pids(pool)
        await pool.close()
        for waiting in (loading, _rest(running), answer(pool, tiny, order("c"))):
            with pytest.raises(Draining):
                await waiting
        assert all(is_gone(pid, 0) for pid in told)

    run(test())
