import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import msgspec
import psutil
import pytest

from mlxm import frames
from mlxm.child import Child
from mlxm.errors import (
    ConfigInvalid,
    Conflict,
    Draining,
    InvalidRequest,
    MlxmError,
    ModelBroken,
    ProtocolMismatch,
    SecretUnreadable,
    TimedOut,
    WorkerDied,
)
from mlxm.frames import Delta, FromWorker, Generate, LoadProgress, RequestEnded, RequestStarted
from mlxm.pool.stream import RequestEvent, RequestStream
from mlxm.pool.worker import Name, Worker, WorkerOptions
from mlxm.types import Sampling, Usage

REFERENCE = Path(__file__).parents[1] / "device" / "children" / "reference.py"
PROMPT = (300, 301, 302)
LONG = tuple(300 + place % 1000 for place in range(7000))
LIMIT_S = 60.0


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """One event loop for the tests that share a worker."""
    with asyncio.Runner() as made:
        yield made


@pytest.fixture(scope="module")
def worker(runner: asyncio.Runner, tiny_folder: Path, options: WorkerOptions) -> Iterator[Worker]:
    """A worker with the built-in model, which no test may harm."""

    async def start() -> Worker:
        made = await Worker.start("tiny", options)
        await made.load(tiny_folder)
        return made

    made = runner.run(start())
    yield made
    assert made.is_alive
    assert made.num_requests == 0
    runner.run(made.stop())


def order(
    request_id: str, prompt: tuple[int, ...] = PROMPT, *, max_tokens: int = 8, stop: tuple[str, ...] = ()
) -> Generate:
    """A greedy request."""
    return Generate(
        request_id=request_id,
        prompt_ids=prompt,
        sampling=Sampling(temperature=0.0),
        max_tokens=max_tokens,
        stop=stop,
    )


async def answer(stream: RequestStream) -> list[RequestEvent]:
    """All of a request's events."""
    async with asyncio.timeout(LIMIT_S):
        return [event async for event in stream]


def text_of(events: list[RequestEvent]) -> str:
    """The text of all deltas."""
    return "".join(event.text for event in events if isinstance(event, Delta))


def tokens_of(events: list[RequestEvent]) -> list[int]:
    """The tokens of all deltas."""
    return [token_id for event in events if isinstance(event, Delta) for token_id in event.token_ids]


def reason_of(events: list[RequestEvent]) -> str | None:
    """Why the answer ended."""
    return next(event.finish_reason for event in reversed(events) if isinstance(event, Delta))


def end_of(events: list[RequestEvent]) -> RequestEnded:
    """The one terminal event, which is the last one."""
    ends = [event for event in events if isinstance(event, RequestEnded)]
    assert ends == events[-1:]
    return ends[0]


def test_tokens_are_those_of_mlx_lm(runner: asyncio.Runner, worker: Worker, tiny_folder: Path) -> None:
    """The whole way, through the sockets, for prompts that wait for each other."""
    numbers = random.Random(3)
    jobs = [([numbers.randrange(256, 1700) for _ in range(length)], 16) for length in (1, 7, 64, 700)]
    done = subprocess.run(
        [sys.executable, REFERENCE],
        input=json.dumps([str(tiny_folder), jobs]).encode(),
        capture_output=True,
        check=True,
    )

    async def ask() -> list[list[int]]:
        streams = [
            worker.generate(order(str(place), tuple(ids), max_tokens=num_tokens))
            for place, (ids, num_tokens) in enumerate(jobs)
        ]
        return [tokens_of(await answer(stream)) for stream in streams]

    assert json.loads(done.stdout) == runner.run(ask())


def test_an_answer_says_how_it_ended(runner: asyncio.Runner, worker: Worker) -> None:
    """Started first, ended last, with true counts."""
    events = runner.run(_ask(worker, order("a")))
    assert events[0] == RequestStarted(request_id="a")
    assert reason_of(events) == "length"
    assert end_of(events) == RequestEnded(request_id="a", usage=Usage(prompt_tokens=3, completion_tokens=8))


async def _ask(worker: Worker, request: Generate) -> list[RequestEvent]:
    return await answer(worker.generate(request))


def test_a_stop_string_ends_an_answer(runner: asyncio.Runner, worker: Worker) -> None:
    """It and what follows are not shown; the tokens until then are counted."""
    whole = text_of(runner.run(_ask(worker, order("a", max_tokens=32))))
    stop = whole[20:27]
    events = runner.run(_ask(worker, order("b", max_tokens=32, stop=("never said", stop))))
    assert text_of(events) == whole[: whole.index(stop)]
    assert reason_of(events) == "stop"
    assert end_of(events).usage.completion_tokens == len(tokens_of(events)) < 32


def test_closing_cancels_in_every_phase(runner: asyncio.Runner, worker: Worker) -> None:
    """Queued, in prefill and in decode: each request ends once, and the next one works."""

    async def test() -> list[str]:
        ends: list[str] = []

        def start(request: Generate) -> RequestStream:
            return worker.generate(request, lambda: ends.append(request.request_id))

        decoding = start(order("decoding", max_tokens=1000))
        prefilling = start(order("prefilling", LONG, max_tokens=1000))
        queued = start(order("queued", max_tokens=1000))
        async with asyncio.timeout(LIMIT_S):
            while not isinstance(await anext(decoding), Delta):
                pass
            await queued.aclose()
            await decoding.aclose()
            assert await anext(prefilling) == RequestStarted(request_id="prefilling")
            await prefilling.aclose()
            await prefilling.aclose()
        assert reason_of(await answer(start(order("next")))) == "length"
        return ends

    ends = runner.run(test())
    assert sorted(ends) == ["decoding", "next", "prefilling", "queued"]
    assert ends[-1] == "next"


def test_a_reader_that_is_cancelled_cancels_its_request(runner: asyncio.Runner, worker: Worker) -> None:
    """As a handler does whose client has left."""

    async def test() -> None:
        ended = asyncio.Event()
        stream = worker.generate(order("a", max_tokens=4000), ended.set)

        async def read() -> None:
            try:
                await answer(stream)
            finally:
                await stream.aclose()

        reading = asyncio.create_task(read())
        await asyncio.sleep(0)
        reading.cancel()
        async with asyncio.timeout(LIMIT_S):
            await ended.wait()

    runner.run(test())


def test_an_id_is_used_once_at_a_time(runner: asyncio.Runner, worker: Worker) -> None:
    """Its events could not be told apart."""

    async def test() -> None:
        stream = worker.generate(order("a", max_tokens=4000))
        with pytest.raises(Conflict, match="already running"):
            worker.generate(order("a"))
        await stream.aclose()
        await answer(worker.generate(order("b")))

    runner.run(test())


def test_an_id_may_come_again_once_its_reader_has_left(runner: asyncio.Runner, worker: Worker) -> None:
    """A client that left and asks again must not be turned away because of what it left behind."""

    async def test() -> None:
        ended: list[str] = []
        for name in ("first", "second"):
            await worker.generate(order("again", max_tokens=4000), partial(ended.append, name)).aclose()
        assert worker.num_requests == 2
        events = await answer(worker.generate(order("again"), partial(ended.append, "third")))
        assert len(tokens_of(events)) == 8
        assert (set(ended[:2]), ended[2:]) == ({"first", "second"}, ["third"])

    runner.run(test())


def test_a_request_that_no_frame_can_carry_leaves_nothing_behind(runner: asyncio.Runner, worker: Worker) -> None:
    """It is refused before the worker knows of it, and its id stays free."""

    async def test() -> None:
        with pytest.raises(InvalidRequest, match="64 bits"):
            worker.generate(msgspec.structs.replace(order("huge"), sampling=Sampling(seed=2**70)))
        assert worker.num_requests == 0
        await answer(worker.generate(order("huge")))

    runner.run(test())


def test_a_refused_request_harms_nobody(runner: asyncio.Runner, worker: Worker) -> None:
    """Ids that the model does not know never reach mlx."""
    fault = end_of(runner.run(_ask(worker, order("a", (5, 1792))))).fault
    assert fault is not None
    assert isinstance(fault.error(), ModelBroken)
    assert end_of(runner.run(_ask(worker, order("b")))).fault is None


def test_loading_reports_progress(tiny_folder: Path) -> None:
    """From nothing to all of its bytes; then the model says what it is."""

    async def test() -> None:
        reports: list[LoadProgress] = []
        worker = await Worker.start("tiny", WorkerOptions(blas_threads=1))
        loaded = await worker.load(tiny_folder, reports.append)
        assert (loaded.architecture, loaded.vocab_size, loaded.context_length) == ("llama", 1792, 8192)
        assert loaded.active_bytes >= reports[-1].total_bytes > 1_000_000
        assert reports[0].done_bytes == 0
        assert reports[-1].done_bytes == reports[-1].total_bytes
        await worker.stop()
        assert not worker.is_alive

    asyncio.run(test())


def test_a_killed_worker_ends_its_requests(tiny_folder: Path, options: WorkerOptions) -> None:
    """Those that run, and those that come later."""

    async def test() -> None:
        worker = await Worker.start("mlxm/tiny", options)
        await worker.load(tiny_folder)
        ends: list[str] = []
        running = worker.generate(order("running", max_tokens=4000), lambda: ends.append("running"))
        beside = worker.generate(order("beside", max_tokens=4000), lambda: ends.append("beside"))
        async with asyncio.timeout(LIMIT_S):
            while not isinstance(await anext(running), Delta):
                pass
        os.kill(worker.pid, signal.SIGKILL)
        for stream in (running, beside):
            with pytest.raises(WorkerDied, match="The worker of mlxm/tiny was ended by SIGKILL"):
                await answer(stream)
        assert ends == ["running", "beside"]
        assert not worker.is_alive
        with pytest.raises(WorkerDied):
            worker.generate(order("late"))
        await worker.stop()

    asyncio.run(test())


def test_a_worker_computes_in_a_folder_of_its_own(tiny_folder: Path, tmp_path: Path, options: WorkerOptions) -> None:
    """Nobody else may enter it, the worker's temporary files go there, and a death is told once with its last words."""
    scratch = tmp_path / "cache" / "worker"
    deaths: list[str] = []

    async def test() -> None:
        worker = await Worker.start(
            "tiny", msgspec.structs.replace(options, scratch=scratch), lambda error: deaths.append(error.message)
        )
        assert scratch.stat().st_mode & 0o777 == 0o700
        assert psutil.Process(worker.pid).environ()["TMPDIR"] == str(scratch)
        await worker.load(tiny_folder)
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(WorkerDied):
            await answer(worker.generate(order("a", max_tokens=4000)))
        await worker.stop()
        assert deaths == ["The worker of tiny was ended by SIGKILL: it left no message."]

    asyncio.run(test())


def test_a_folder_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    """The worker would load code from it."""
    tmp_path.chmod(0o777)
    with pytest.raises(SecretUnreadable, match="mode 0777"):
        WorkerOptions(scratch=tmp_path).environ()


def test_a_worker_that_is_told_to_leave_is_no_death(tiny_folder: Path, options: WorkerOptions) -> None:
    """Nor is one that cannot start left untold."""
    deaths: list[MlxmError] = []

    async def test() -> None:
        worker = await Worker.start("tiny", options, deaths.append)
        await worker.load(tiny_folder)
        await worker.stop()
        assert deaths == []
        with pytest.raises(WorkerDied) as caught:
            await Worker.start("tiny", WorkerOptions(hello_timeout_s=0.0001), deaths.append)
        assert deaths == [caught.value]

    asyncio.run(test())


def test_stopping_ends_requests_politely(tiny_folder: Path, options: WorkerOptions) -> None:
    """Their clients may come again."""

    async def test() -> None:
        worker = await Worker.start("tiny", options)
        await worker.load(tiny_folder)
        stream = worker.generate(order("a", max_tokens=4000))
        assert await anext(stream) == RequestStarted(request_id="a")
        await worker.stop()
        with pytest.raises(Draining, match="being unloaded"):
            await answer(stream)

    asyncio.run(test())


def test_a_broken_model_is_explained(tiny_folder: Path, tmp_path: Path, is_gone: Callable[[int, float], bool]) -> None:
    """The worker leaves nothing behind."""
    broken = shutil.copytree(tiny_folder, tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])

    async def test() -> None:
        worker = await Worker.start("broken", WorkerOptions())
        with pytest.raises(ModelBroken, match=f"{weights} has .* bytes where its header promises"):
            await worker.load(broken)
        assert is_gone(worker.pid, 0)

    asyncio.run(test())


def test_a_bad_blas_is_explained(tiny_folder: Path) -> None:
    """As a mistake in the settings, which it is."""
    if sys.platform != "linux":
        return

    async def test() -> None:
        worker = await Worker.start("tiny", WorkerOptions(blas="/no/such.so"))
        with pytest.raises(ConfigInvalid, match=r"/no/such\.so cannot be loaded"):
            await worker.load(tiny_folder)

    asyncio.run(test())


def test_a_load_that_takes_too_long_is_given_up(tiny_folder: Path, is_gone: Callable[[int, float], bool]) -> None:
    """The worker is ended."""

    async def test() -> None:
        worker = await Worker.start("tiny", WorkerOptions(load_timeout_s=0.01))
        with pytest.raises(TimedOut, match=r"tiny was not loaded within 0\.01 s"):
            await worker.load(tiny_folder)
        assert is_gone(worker.pid, 0)

    asyncio.run(test())


def test_a_load_that_is_cancelled_ends_the_worker(tiny_folder: Path, is_gone: Callable[[int, float], bool]) -> None:
    """Nobody would ever ask it anything."""

    async def test() -> None:
        worker = await Worker.start("tiny", WorkerOptions())
        loading = asyncio.create_task(worker.load(tiny_folder))
        await asyncio.sleep(0)
        loading.cancel()
        await asyncio.wait([loading])
        assert loading.cancelled()
        assert is_gone(worker.pid, 0)

    asyncio.run(test())


def test_a_worker_can_leave_before_it_has_a_model() -> None:
    """It is told to before it is told to load."""

    async def test() -> None:
        worker = await Worker.start("tiny", WorkerOptions())
        await worker._child.stop(LIMIT_S)
        assert worker._child.exit_code == 0
        await worker.kill()

    asyncio.run(test())


def test_an_order_before_the_model_is_refused() -> None:
    """A worker without a model cannot answer."""

    async def test() -> None:
        worker = await Worker.start("tiny", WorkerOptions())
        with pytest.raises(ProtocolMismatch, match="without a model does not take Generate"):
            await answer(worker.generate(order("a")))
        await worker.stop()

    asyncio.run(test())


def test_a_worker_that_talks_out_of_turn_is_ended(is_gone: Callable[[int, float], bool]) -> None:
    """What it says cannot be relied on, so its requests fail."""

    async def test() -> None:
        environ = os.environ | {"PYTHONPATH": str(Path(__file__).parent / "children")}
        child = await Child.start("scripted", FromWorker, arguments=("hello", "hello"), environ=environ)
        worker = Worker(child, Name("tiny"), WorkerOptions())
        with pytest.raises(ProtocolMismatch, match="unexpected Hello"):
            await answer(worker.generate(order("a")))
        await worker.kill()
        assert is_gone(worker.pid, 0)

    asyncio.run(test())


def test_another_protocol_asks_for_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program was changed while it ran."""
    monkeypatch.setattr(frames, "PROTOCOL", "another")

    async def test() -> None:
        with pytest.raises(ProtocolMismatch) as caught:
            await Worker.start("tiny", WorkerOptions())
        assert caught.value.hint is not None
        assert "restart the server" in caught.value.hint

    asyncio.run(test())
