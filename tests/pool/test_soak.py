import asyncio
import gc
import os
import random
import signal
import time
from pathlib import Path

import psutil
import pytest

from mlxm.frames import Generate, RequestEnded
from mlxm.hub import Hub, HubSettings
from mlxm.hub_pool import Wishes
from mlxm.pool.launch import Workers
from mlxm.pool.limit import MemoryLimit
from mlxm.pool.options import LocalModel, Parts, PoolOptions, estimate_files
from mlxm.pool.pool import Pool
from mlxm.pool.worker import WorkerOptions
from mlxm.types import Sampling
from tests.server.harness import CHAT, Running, serving

ANSWER_S = 60.0
"""Longer than that no request takes, whatever is killed."""
HEALTH_S = 2.0


def chat_of(number: int) -> dict[str, object]:
    """A request that takes a while."""
    messages = [{"role": "user", "content": f"Hello number {number}"}]
    return {"model": "mlxm/tiny", "messages": messages, "max_tokens": 40}


@pytest.mark.slow
def test_workers_are_killed_and_the_server_goes_on(tmp_path: Path, long_soak: bool) -> None:  # noqa: FBT001
    """Fifty times under load: every request is answered or told to come again, and nothing is left behind."""
    num_kills = 50 if long_soak else 8
    options = PoolOptions(max_deaths=10_000, restart_s=0.05, max_retry_s=0.2)
    statuses: list[int] = []
    slowest_s = [0.0]

    async def client(server: Running, number: int, done: asyncio.Event) -> None:
        while not done.is_set():
            async with asyncio.timeout(ANSWER_S):
                response = await server.http.post(CHAT, json=chat_of(number), timeout=ANSWER_S)
            statuses.append(response.status_code)
            if response.status_code == 503:
                assert int(response.headers["retry-after"]) >= 1
                assert response.json()["error"]["type"] == "overloaded_error"

    async def watch_health(server: Running, done: asyncio.Event) -> None:
        while not done.is_set():
            began_s = time.monotonic()
            assert (await server.http.get("/health", timeout=HEALTH_S)).status_code == 200
            slowest_s[0] = max(slowest_s[0], time.monotonic() - began_s)
            await asyncio.sleep(0.05)

    async def kill(hub: Hub) -> None:
        rng = random.Random(7)
        killed: set[int | None] = {None}
        for _ in range(num_kills):
            while not (pids := {row.pid for row in hub._pool.models() if row.in_use} - killed):  # noqa: ASYNC110
                await asyncio.sleep(0.01)  # nobody tells when a worker has begun to answer
            pid = pids.pop()
            assert pid is not None
            await asyncio.sleep(rng.uniform(0, 0.2))
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)

    async def test() -> None:
        settings = HubSettings(home=tmp_path / "home", pool=Wishes(options=options))
        async with Hub(settings) as hub, serving(hub) as server:
            assert (await server.http.post(CHAT, json=chat_of(0), timeout=ANSWER_S)).status_code == 200
            done = asyncio.Event()
            clients = [asyncio.create_task(client(server, number, done)) for number in range(4)]
            clients.append(asyncio.create_task(watch_health(server, done)))
            await asyncio.sleep(0.5)
            before = footprint()
            await kill(hub)
            done.set()
            await asyncio.gather(*clients)
            assert (await server.http.post(CHAT, json=chat_of(0), timeout=ANSWER_S)).status_code == 200
            after = footprint()
            assert [row.in_use for row in hub._pool.models()] == [0]
            assert after[0] <= before[0] + 4
            assert after[1] <= before[1] * 1.05 + 8_000_000
        assert set(statuses) <= {200, 503}
        assert statuses.count(200) >= 4

    asyncio.run(test())


def footprint() -> tuple[int, int]:
    """Open files and resident bytes of this process."""
    gc.collect()
    process = psutil.Process()
    return process.num_fds(), process.memory_info().rss


@pytest.mark.slow
def test_three_models_with_room_for_two_stay_within_the_budget(
    tmp_path: Path,
    tiny_folder: Path,
    long_soak: bool,  # noqa: FBT001
) -> None:
    """Requests for all three flow, all are answered, and what mlx holds in all of them never exceeds the budget."""
    num_requests = 40 if long_soak else 2
    measured: list[int] = []

    async def client(pool: Pool, model: LocalModel, number: int) -> None:
        for turn in range(num_requests):
            request = Generate(
                request_id=f"{model.name}.{number}.{turn}",
                prompt_ids=tuple(range(300, 500)),
                sampling=Sampling(temperature=0.0),
                max_tokens=20,
            )
            async with asyncio.timeout(ANSWER_S * 4):
                events = [event async for event in pool.generate(model, request)]
            assert isinstance(events[-1], RequestEnded)
            assert events[-1].fault is None

    async def watch(pool: Pool, budget_bytes: int) -> None:
        while True:
            status = await pool.status()
            assert status.reserved_bytes <= budget_bytes
            measured.append(sum(row.memory_bytes or 0 for row in status.models))
            await asyncio.sleep(0.02)

    async def test() -> None:
        need = await estimate_files(tiny_folder, 4096)
        budget_bytes = need.least_bytes * 5 // 2
        options = PoolOptions(
            memory=MemoryLimit(num_bytes=budget_bytes, reserve_bytes=0), patience_s=0.2, queue_s=ANSWER_S * 3
        )
        launcher = Workers(WorkerOptions(verdicts=tmp_path / "verdicts"))
        pool = Pool(options, Parts(launcher=launcher))
        models = [LocalModel(name=name, folder=tiny_folder, context_length=8192) for name in ("a", "b", "c")]
        watching = asyncio.create_task(watch(pool, budget_bytes))
        await asyncio.gather(*(client(pool, model, number) for number, model in enumerate(models * 2)))
        assert not watching.done()
        watching.cancel()
        await pool.close()
        assert need.least_bytes < max(measured) <= budget_bytes

    asyncio.run(test())
