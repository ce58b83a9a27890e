import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from mlxm.errors import MlxmError
from mlxm.frames import Generate, RequestEnded
from mlxm.pool.launch import Workers
from mlxm.pool.options import LocalModel, Parts, PoolOptions
from mlxm.pool.pool import Pool
from mlxm.pool.worker import Worker, WorkerOptions

LIMIT_S = 120.0
LONG = tuple(300 + place % 900 for place in range(1500))


def run(test: Callable[[], object]) -> None:
    """Run a test within bounded time."""

    async def limited() -> None:
        async with asyncio.timeout(LIMIT_S):
            await test()  # type: ignore[misc]

    asyncio.run(limited())


def test_a_spare_worker_is_taken_and_speaks_of_its_model(options: WorkerOptions, tiny_folder: Path) -> None:
    """Its errors name the model; where there is none a new one is started, and one that died is not taken."""
    deaths: list[str] = []

    async def test() -> None:
        workers = Workers(options, lambda error: deaths.append(error.message))
        workers.refill(has_spare=True)
        spare = workers._spare
        assert spare is not None
        workers.refill(has_spare=True)
        assert workers._spare is spare
        taken = await workers.take("tiny")
        assert taken is spare.result()
        assert workers._spare is None
        await taken.load(tiny_folder, kv_bytes=50_000_000, cache_bytes=40_000_000)
        assert taken.loaded is not None
        assert 0 < taken.loaded.kv_bytes <= 50_000_000
        os.kill(taken.pid, signal.SIGKILL)
        assert "The worker of tiny was ended by SIGKILL" in (await taken.ended()).message
        workers.refill(has_spare=True)
        assert workers._spare is not None
        dead = await asyncio.shield(workers._spare)
        os.kill(dead.pid, signal.SIGKILL)
        await dead.ended()
        other = await workers.take("other")
        assert other is not dead
        dead.shrink()  # one without a model has nothing to give back
        await other.stop()
        await workers.close()

    run(test)
    assert len(deaths) == 2


def test_a_spare_worker_goes_when_it_is_not_wanted(
    options: WorkerOptions, is_gone: Callable[[int, float], bool]
) -> None:
    """Also while it starts, and when who waits for it leaves."""

    async def test() -> None:
        workers = Workers(options)
        workers.refill(has_spare=True)
        assert workers._spare is not None
        spare = workers._spare
        taking = asyncio.create_task(workers.take("tiny"))
        await asyncio.sleep(0)
        taking.cancel()
        await asyncio.wait([taking])
        await workers.close()
        assert is_gone(spare.result().pid, 0)

    run(test)


def test_a_spare_worker_that_cannot_start_is_no_failure(
    options: WorkerOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one is tried when a model needs it."""
    told: list[MlxmError] = []

    async def test() -> None:
        workers = Workers(options, told.append)
        monkeypatch.setattr("sys.executable", "/absent/python")
        workers.refill(has_spare=True)
        assert workers._spare is not None
        await asyncio.wait([workers._spare])
        monkeypatch.undo()
        worker = await workers.take("tiny")
        assert isinstance(worker, Worker)
        await worker.stop()
        await workers.close()

    run(test)


def test_two_models_take_turns_with_long_prompts(tiny_folder: Path, tmp_path: Path) -> None:
    """Both are answered; who had the turn has given it back to the other at least once."""
    names = ("one", "two")
    seen: list[tuple[str, bool]] = []

    async def test() -> None:
        workers = Workers(WorkerOptions(verdicts=tmp_path))
        tell = workers._turns._tell
        workers._turns._tell = lambda worker, has_it: (seen.append((worker._name.text, has_it)), tell(worker, has_it))[
            1
        ]
        pool = Pool(PoolOptions(has_spare=False), Parts(launcher=workers))
        models = [LocalModel(name=name, folder=tiny_folder, context_length=8192) for name in names]
        for model in models:
            await ask(pool, model, (300, 301))
        await asyncio.gather(*(ask(pool, model, LONG) for model in models))
        await pool.close()

    run(test)
    assert seen[0] == ("one", True)
    assert ("two", True) in seen
    assert ("one", False) in seen


async def ask(pool: Pool, model: LocalModel, prompt: tuple[int, ...]) -> None:
    """A prompt, and one token."""
    request = Generate(request_id=f"{model.name}.{len(prompt)}", prompt_ids=prompt, max_tokens=1)
    events = [event async for event in pool.generate(model, request)]
    assert isinstance(events[-1], RequestEnded)
    assert events[-1].fault is None


def test_shrinking_gives_memory_back(options: WorkerOptions, tiny_folder: Path) -> None:
    """What mlx kept of freed memory is gone afterwards."""

    async def test() -> None:
        pool = Pool(PoolOptions(has_spare=False), Parts(launcher=Workers(options)))
        model = LocalModel(name="tiny", folder=tiny_folder, context_length=8192)
        await ask(pool, model, LONG)
        (slot,) = pool.slots()
        worker = slot.present()
        assert worker.stats is not None
        before = worker.stats
        assert before.cache_bytes
        worker.shrink()
        while worker.stats is before:  # noqa: ASYNC110  # nobody tells
            await asyncio.sleep(0.01)
        assert worker.stats.cache_bytes is not None
        assert worker.stats.cache_bytes < before.cache_bytes
        await pool.close()

    run(test)
