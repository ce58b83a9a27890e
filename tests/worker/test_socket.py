import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Iterator
from functools import partial
from pathlib import Path

import msgspec
import pytest

from mlxm.child import Child
from mlxm.errors import ContextTooLong, InternalError, WorkerDied
from mlxm.frames import Delta, FromWorker, Generate, Load, Loaded, RequestEnded, RequestStarted, Shutdown, Stats, Step
from mlxm.pool.stream import RequestEvent, RequestStream
from mlxm.pool.worker import Name, Worker, WorkerOptions
from mlxm.types import Sampling, Usage

REFERENCE = Path(__file__).parents[1] / "device" / "children" / "reference.py"
CHILDREN = Path(__file__).parent / "children"
LIMIT_S = 60.0
GREEDY = Sampling(temperature=0.0)
NUM_REQUESTS = 1000
SOAK_S = 40.0
BLOCK_TOKENS = 32

Tokens = dict[int, list[int]]


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """One event loop for the tests that share a worker."""
    with asyncio.Runner() as made:
        yield made


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where workers of this module keep what they found out; made by them."""
    return tmp_path_factory.mktemp("cache") / "kv-stores"


@pytest.fixture(scope="module")
def worker(runner: asyncio.Runner, tiny_folder: Path, verdicts: Path) -> Iterator[Worker]:
    """A worker with the built-in model, which no test may harm."""
    made = runner.run(start(tiny_folder, WorkerOptions(verdicts=verdicts)))
    yield made
    assert made.is_alive
    assert made.num_requests == 0
    runner.run(made.stop())


async def start(folder: Path, options: WorkerOptions, kv_bytes: int | None = None) -> Worker:
    """A worker that has its model."""
    made = await Worker.start("tiny", options)
    await made.load(folder, kv_bytes=kv_bytes)
    return made


async def bounded(work: Awaitable[None], within_s: float = LIMIT_S) -> None:
    """Do something within bounded time."""
    async with asyncio.timeout(within_s):
        await work


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    """Ordinary tokens."""
    numbers = random.Random(1000 * length + seed)
    return tuple(numbers.randrange(256, 1000) for _ in range(length))


def order(request_id: str, prompt_ids: tuple[int, ...], num_tokens: int = 16, **fields: object) -> Generate:
    """A greedy request that does not stop early."""
    sampling = Sampling(temperature=0.0, ignore_eos=True)
    request = Generate(request_id=request_id, prompt_ids=prompt_ids, max_tokens=num_tokens, sampling=sampling)
    return msgspec.structs.replace(request, **fields)


async def ask(worker: Worker, request: Generate) -> tuple[Tokens, RequestEnded]:
    """The tokens of each choice, and the end."""
    events = [event async for event in worker.generate(request)]
    assert isinstance(events[0], RequestStarted)
    end = events[-1]
    assert isinstance(end, RequestEnded)
    tokens: Tokens = {}
    for event in events[1:-1]:
        assert isinstance(event, Delta)
        tokens.setdefault(event.choice, []).extend(event.token_ids)
    return tokens, end


def rest_of(worker: Worker) -> Stats:
    """How a worker is doing whose requests have all ended: it says so before it says that the last one has."""
    stats = worker.stats
    assert stats is not None
    assert (stats.running, stats.waiting) == (0, 0)
    return stats


def test_a_batch_says_what_mlx_lm_says(runner: asyncio.Runner, worker: Worker, tiny_folder: Path) -> None:
    """Twelve requests at once, each as if it were alone; and again, with their beginnings from the cache."""
    lengths = (1, 2, 31, 32, 33, 34, 64, 65, 100, 257, 600, 1100)
    jobs = [(prompt(length), 8 + place) for place, length in enumerate(lengths)]
    done = subprocess.run(
        [sys.executable, REFERENCE],
        input=json.dumps([str(tiny_folder), jobs]).encode(),
        capture_output=True,
        check=True,
    )
    expected = json.loads(done.stdout)

    async def test() -> None:
        for turn in range(2):
            orders = [order(str(place), *job, sampling=GREEDY) for place, job in enumerate(jobs)]
            answers = await asyncio.gather(*(ask(worker, each) for each in orders))
            assert [tokens[0] for tokens, _ in answers] == expected
            cached = [end.usage.cached_tokens for _, end in answers]
            reusable = [(length - 1) // BLOCK_TOKENS * BLOCK_TOKENS for length in lengths]
            assert cached == [0] * len(jobs) if turn == 0 else all(map(int.__ge__, cached, reusable))
        stats = rest_of(worker)
        assert (stats.blocks_used, stats.prefix_hit_tokens > 0) == (0, True)
        assert stats.batch_width > 1.5
        assert stats.active_bytes is not None
        assert stats.peak_bytes is not None
        assert stats.peak_bytes >= stats.active_bytes > 1_000_000

    runner.run(bounded(test()))


def test_choices_share_their_prompt(runner: asyncio.Runner, worker: Worker) -> None:
    """It is computed and counted once; each choice goes its own way."""

    async def test() -> None:
        ids = prompt(320, 1)
        before = rest_of(worker).prefix_queried_tokens
        hot = Sampling(temperature=1.0, seed=5, ignore_eos=True)
        tokens, end = await ask(worker, order("four", ids, 40, num_choices=4, sampling=hot))
        assert end.usage == Usage(prompt_tokens=320, completion_tokens=160)
        assert [len(tokens[choice]) for choice in range(4)] == [40] * 4
        assert len({tuple(each) for each in tokens.values()}) == 4
        stats = rest_of(worker)
        assert stats.prefix_queried_tokens - before == 320
        assert stats.blocks_used == 0
        alone, _ = await ask(worker, order("one", ids, 40, sampling=hot))
        assert alone[0] == tokens[0]

    runner.run(bounded(test()))


def test_a_thousand_requests_half_of_them_cancelled(
    runner: asyncio.Runner, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While they wait, and in the middle: each of them ends exactly once, and nothing stays behind."""
    numbers = random.Random(11)
    told = Counter[str]()
    ended = Counter[str]()
    cancelled = Counter[str]()
    pass_on = Worker._pass_on

    def watch(self: Worker, event: RequestEvent) -> None:
        if isinstance(event, RequestEnded):
            told[event.request_id] += 1
            cancelled[event.request_id] += event.cancelled is not None
        pass_on(self, event)

    monkeypatch.setattr(Worker, "_pass_on", watch)

    def begin(number: int) -> RequestStream:
        name = f"r{number}"
        request = order(name, prompt(numbers.randrange(1, 80), number % 7), numbers.randrange(2, 10))
        return worker.generate(request, partial(ended.update, [name]))

    async def read(number: int) -> None:
        events = [event async for event in begin(number)]
        last = events[-1]
        assert isinstance(last, RequestEnded)
        assert (last.fault, last.cancelled) == (None, None)
        assert last.usage.completion_tokens > 1

    async def leave_early(number: int) -> None:
        stream = begin(number)
        if number % 4:
            await asyncio.sleep(numbers.uniform(0.0, 2.0))
        else:
            for _ in range(numbers.randrange(4)):
                await anext(stream, None)
        await stream.aclose()

    async def test() -> None:
        await asyncio.gather(*((read if number % 2 else leave_early)(number) for number in range(NUM_REQUESTS)))
        await ask(worker, order("last", prompt(3)))
        stats = rest_of(worker)
        assert stats.blocks_used == 0
        assert stats.blocks_cached + stats.blocks_free == stats.blocks_total
        everybody = {f"r{number}" for number in range(NUM_REQUESTS)}
        assert told == Counter({*everybody, "last"})
        assert ended == Counter(everybody)
        assert cancelled.total() > NUM_REQUESTS / 5

    runner.run(bounded(test(), SOAK_S))


def test_the_urgent_goes_first(runner: asyncio.Runner, tiny_folder: Path, verdicts: Path) -> None:
    """Where there is room for one at a time; and what a worker was given for keys and values is what it takes."""

    async def test() -> None:
        worker = await start(tiny_folder, WorkerOptions(verdicts=verdicts, max_rows=1), kv_bytes=10_000_000)
        facts = worker.loaded
        assert facts is not None
        assert facts.num_blocks == 10_000_000 // facts.block_bytes
        ends: list[str] = []
        running = worker.generate(order("running", prompt(40), 200, priority=2), lambda: ends.append("running"))
        assert isinstance(await anext(running), RequestStarted)
        waiting = [
            worker.generate(order(name, prompt(40), 4, priority=priority), partial(ends.append, name))
            for name, priority in (("low", 2), ("normal", 1), ("high", 0))
        ]
        for stream in (running, *waiting):
            assert [event async for event in stream]
        assert ends == ["running", "high", "normal", "low"]
        fault = (await ask_for_end(worker, order("large", prompt(5000), 10))).fault
        assert fault is not None
        assert isinstance(fault.error(), ContextTooLong)
        await worker.stop()

    runner.run(bounded(test()))


async def ask_for_end(worker: Worker, request: Generate) -> RequestEnded:
    """Only how a request ended."""
    events = [event async for event in worker.generate(request)]
    assert isinstance(events[-1], RequestEnded)
    return events[-1]


def test_what_was_found_out_is_kept(
    runner: asyncio.Runner, worker: Worker, tiny_folder: Path, verdicts: Path, tmp_path: Path
) -> None:
    """For the next worker; where nothing can be kept, the model is loaded all the same, and the log is told."""
    said: list[str] = []

    async def test() -> None:
        again = await start(tiny_folder, WorkerOptions(verdicts=verdicts))
        assert worker.loaded is not None
        assert again.loaded is not None
        assert "8 rows" in worker.loaded.why
        assert again.loaded.why == worker.loaded.why
        await again.stop()
        (tmp_path / "file").touch()
        options = WorkerOptions(verdicts=tmp_path / "file" / "folder")
        other = await Worker.start("tiny", options, on_words=lambda name, words: said.append(f"{name}: {words}"))
        loaded = await other.load(tiny_folder)
        assert "8 rows" in loaded.why
        await other.stop()

    runner.run(bounded(test()))
    assert len(said) == 1
    assert said[0].startswith(f"tiny: {tmp_path / 'file' / 'folder'} keeps no verdict: ")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere mlx brings a fast BLAS")
def test_a_slow_blas_is_told(runner: asyncio.Runner, tiny_folder: Path, verdicts: Path) -> None:
    """In the log, and to whoever asks why the model runs as it does."""
    said: list[str] = []

    async def test() -> None:
        options = WorkerOptions(verdicts=verdicts, blas="none")
        slow = await Worker.start("tiny", options, on_words=lambda _, words: said.append(words))
        loaded = await slow.load(tiny_folder)
        assert "reference BLAS" in loaded.why
        await slow.stop()

    runner.run(bounded(test()))
    assert ["reference BLAS" in words for words in said] == [True]


@pytest.mark.parametrize("token", [1001, 1002, 1003])
def test_a_fault_leaves_the_others_as_they_are(
    runner: asyncio.Runner, worker: Worker, breaking: Worker, token: int
) -> None:
    """When a step is launched, when it is collected, and in its numbers; in a chunk of a prompt and in a row."""

    async def test() -> None:
        good = [order(f"good {place}", prompt(20 + 9 * place, token), 12) for place in range(6)]
        bad = [order("row", (*prompt(40), token)), order("chunk", (*prompt(40), token, *prompt(40)))]
        expected = [await ask(worker, each) for each in good]
        tasks = [asyncio.create_task(ask(breaking, each)) for each in good[:3]]
        await asyncio.sleep(0.05)
        ends = asyncio.gather(*(ask_for_end(breaking, each) for each in bad[: 1 if token == 1003 else 2]))
        tasks += [asyncio.create_task(ask(breaking, each)) for each in good[3:]]
        answers = [await task for task in tasks]
        assert [tokens for tokens, _ in answers] == [tokens for tokens, _ in expected]
        assert [end.fault for _, end in answers] == [None] * 6
        for end in await ends:
            assert end.fault is not None
            assert isinstance(end.fault.error(), InternalError)
        assert rest_of(breaking).blocks_used == 0

    runner.run(bounded(test()))


@pytest.fixture(scope="module")
def breaking(runner: asyncio.Runner, tiny_folder: Path) -> Iterator[Worker]:
    """A worker whose device fails on certain tokens."""
    path = os.pathsep.join([str(CHILDREN), *filter(None, [os.environ.get("PYTHONPATH")])])

    async def start_breaking() -> Worker:
        child = await Child.start("breaking_worker", FromWorker, environ=os.environ | {"PYTHONPATH": path})
        made = Worker(child, Name("breaking"), WorkerOptions())
        await made.load(tiny_folder)
        return made

    made = runner.run(start_breaking())
    yield made
    runner.run(made.stop())


def test_a_worker_that_is_killed_ends_every_stream(runner: asyncio.Runner, tiny_folder: Path, verdicts: Path) -> None:
    """In the middle of all of them; each reader is told, and each lease given back once."""

    async def test() -> None:
        worker = await start(tiny_folder, WorkerOptions(verdicts=verdicts))
        ends = Counter[int]()
        streams = [
            worker.generate(order(str(number), prompt(50, number), 4000), partial(ends.update, [number]))
            for number in range(20)
        ]
        for stream in streams[:10]:
            while not isinstance(await anext(stream), Delta):
                pass
        os.kill(worker.pid, signal.SIGKILL)
        for stream in streams:
            with pytest.raises(WorkerDied, match="SIGKILL"):
                assert [event async for event in stream]
        assert ends == Counter(range(20))
        await worker.stop()

    runner.run(bounded(test()))


def test_leaving_ends_what_runs_and_what_waits(runner: asyncio.Runner, tiny_folder: Path, verdicts: Path) -> None:
    """Each once, with the reason, and the process ends by itself and well."""

    async def test() -> None:
        child = await Child.start("mlxm.worker", FromWorker)
        child.send(Load(path=str(tiny_folder), verdicts=str(verdicts), max_rows=2))
        for number in range(4):
            child.send(order(str(number), prompt(300, number), 4000))
        ends: list[RequestEnded] = []
        has_loaded = has_left = False
        async for frame in child.frames():
            has_loaded |= isinstance(frame, Loaded)
            if isinstance(frame, Step):
                ends += [event for event in frame.events if isinstance(event, RequestEnded)]
                if not has_left and any(isinstance(event, Delta) for event in frame.events):
                    child.send(Shutdown())
                    has_left = True
        assert has_loaded
        assert sorted(end.request_id for end in ends) == ["0", "1", "2", "3"]
        assert {end.cancelled for end in ends} == {"the worker was told to leave"}
        await child.stop()
        assert child.exit_code == 0

    runner.run(bounded(test()))
