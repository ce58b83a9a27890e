"""A pool without processes: workers that do what a test says, and a loop whose clock jumps instead of waiting."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from mlxm.errors import Draining, MlxmError, WorkerDied
from mlxm.frames import Delta, Generate, Loaded, LoadProgress, RequestEnded, RequestStarted, Stats
from mlxm.pool.budget import Need
from mlxm.pool.limit import MemoryLimit
from mlxm.pool.options import LocalModel, Parts, PoolOptions
from mlxm.pool.pool import Pool
from mlxm.pool.pressure import Pressure
from mlxm.pool.status import Level
from mlxm.pool.stream import RequestStream
from mlxm.types import Usage

T = TypeVar("T")
MB = 1_000_000
NO_PID = 4_000_000_000
"""No process has it."""


class JumpingLoop(asyncio.SelectorEventLoop):
    """When there is nothing to do but to wait for the clock, the clock goes on."""

    def __init__(self) -> None:
        self._skipped_s = 0.0
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        """Its own time."""
        return self._skipped_s

    def skip(self, seconds: float) -> None:
        """Let time pass."""
        self._skipped_s += seconds


class _JumpingSelector(selectors.SelectSelector):
    def __init__(self, loop: JumpingLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        if timeout is not None and timeout > 0:
            self._loop.skip(timeout)
            timeout = 0
        return super().select(timeout)


def jump(work: Coroutine[Any, Any, T]) -> T:
    """Run a test in no time."""
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(work)


class FakeWorker:
    """Loads when it is let, answers when it is told to, and dies on request."""

    def __init__(self, launcher: "FakeLauncher", name: str) -> None:
        self._launcher = launcher
        self.name = name
        self.pid = NO_PID
        self.end: MlxmError | None = None
        self.loaded: Loaded | None = None
        self.stats: Stats | None = None
        self.num_shrunk = 0
        self.kv_bytes: int | None = None
        self.streams: dict[str, RequestStream] = {}
        self._ended = asyncio.Event()
        self._may_load: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def load(
        self,
        _folder: Path,
        report: Callable[[LoadProgress], None],
        *,
        kv_bytes: int | None,
        cache_bytes: int | None,  # noqa: ARG002  # as real ones have it
    ) -> Loaded:
        """Wait to be let, or to fail."""
        self.kv_bytes = kv_bytes
        report(LoadProgress(done_bytes=0, total_bytes=100))
        if self._launcher.loads_at_once:
            self.let_load()
        try:
            await self._may_load
        except BaseException:
            self._finish(Draining("It is over."))
            raise
        report(LoadProgress(done_bytes=100, total_bytes=100))
        size = 0 if kv_bytes is None else kv_bytes
        self.loaded = Loaded(
            architecture="fake", vocab_size=1, context_length=1, active_bytes=0, load_s=0, kv_bytes=size
        )
        return self.loaded

    def let_load(self, error: MlxmError | None = None) -> None:
        """Let the load succeed, or fail."""
        if self._may_load.done():
            return
        if error is None:
            self._may_load.set_result(None)
        else:
            self._may_load.set_exception(error)

    @property
    def is_loading(self) -> bool:
        """Whether it waits to be let."""
        return self.end is None and not self._may_load.done()

    def generate(self, request: Generate, on_end: Callable[[], None]) -> RequestStream:
        """Take a request."""
        if self.end is not None:
            raise self.end

        def forget() -> None:
            del self.streams[request.request_id]
            on_end()

        def cancel(_reason: str) -> None:
            asyncio.get_running_loop().call_soon(self.finish, request.request_id)

        stream = self.streams[request.request_id] = RequestStream(cancel=cancel, on_end=forget)
        stream.put(RequestStarted(request_id=request.request_id))
        if self._launcher.answers_at_once:
            self.say(request.request_id)
            self.finish(request.request_id)
        return stream

    def say(self, request_id: str) -> None:
        """Answer something."""
        stream = self.streams[request_id]
        stream.put(Delta(request_id=request_id, choice=0, seq=stream._next_seq, text="a", token_ids=(1,)))

    def finish(self, request_id: str) -> None:
        """End a request, unless it has ended."""
        if request_id in self.streams:
            self.streams[request_id].put(RequestEnded(request_id=request_id, usage=Usage()))

    def shrink(self) -> None:
        """Count it."""
        self.num_shrunk += 1

    def die(self) -> None:
        """As by kill -9."""
        self._finish(WorkerDied(f"The worker of {self.name} was ended by SIGKILL."))
        self.let_load(self.end)

    async def ended(self) -> MlxmError:
        """Wait for its end."""
        await self._ended.wait()
        assert self.end is not None
        return self.end

    async def stop(self) -> None:
        """Leave; that takes a moment."""
        self._finish(Draining(f"{self.name} is being unloaded."))
        await asyncio.sleep(0.05)

    def _finish(self, reason: MlxmError) -> None:
        if self.end is None:
            self.end = reason
            self._ended.set()
            for stream in list(self.streams.values()):
                stream.fail(reason)


class FakeLauncher:
    """Makes fake workers, and remembers them."""

    def __init__(self, *, loads_at_once: bool = True, answers_at_once: bool = True) -> None:
        self.loads_at_once = loads_at_once
        self.answers_at_once = answers_at_once
        self.workers: list[FakeWorker] = []
        self.spares: list[bool] = []

    async def take(self, name: str) -> FakeWorker:
        """A new one."""
        self.workers.append(FakeWorker(self, name))
        return self.workers[-1]

    def refill(self, *, has_spare: bool) -> None:
        """Remember what was wanted."""
        self.spares.append(has_spare)

    async def close(self) -> None:
        """There is nothing to close."""

    def named(self, name: str) -> list[FakeWorker]:
        """Every worker that a model has had."""
        return [worker for worker in self.workers if worker.name == name]


class FakeMemory:
    """A machine of a size, and what is left on it for others than models."""

    def __init__(self, total_bytes: int = 1000 * MB) -> None:
        self.total_bytes = total_bytes
        self.available_bytes = 100 * total_bytes
        self.level: Level = "normal"

    def __call__(self) -> Pressure:
        """How it stands."""
        return Pressure(level=self.level, available_bytes=self.available_bytes, total_bytes=self.total_bytes)


class Stage:
    """A pool of fakes: models are named by what they need, as in `model("a", 40)` for 40 MB."""

    def __init__(self, *, launcher: FakeLauncher | None = None, budget_mb: int = 100, **options: Any) -> None:
        self.launcher = FakeLauncher() if launcher is None else launcher
        self.memory = FakeMemory()
        self.needs: dict[str, Need] = {}
        self.troubles: list[MlxmError] = []
        self.options = PoolOptions(memory=limit(budget_mb), **options)
        self.pool = Pool(
            self.options,
            Parts(
                launcher=self.launcher,
                estimate=self._estimate,
                probe=self.memory,
                on_trouble=self.troubles.append,
            ),
        )

    async def _estimate(self, folder: Path, context: int | None) -> Need:
        need = self.needs[folder.name]
        return need if context is None else Need(fixed_bytes=need.fixed_bytes, least_kv_bytes=context * MB)

    def model(self, name: str, size_mb: int = 40, **kv_bytes: int) -> LocalModel:
        """A model of that size."""
        self.needs[name] = Need(fixed_bytes=size_mb * MB, **kv_bytes)
        return LocalModel(name=name, folder=Path("/models") / name, context_length=None)

    async def ask(self, model: LocalModel, request_id: str = "r") -> list[Any]:
        """All events of a request."""
        request = Generate(request_id=request_id, prompt_ids=(1,))
        return [event async for event in self.pool.generate(model, request)]

    def states(self) -> dict[str, str]:
        """How each model stands."""
        return {row.model: row.state for row in self.pool.models()}

    def worker(self, name: str) -> FakeWorker:
        """A model's latest worker."""
        return self.launcher.named(name)[-1]


def limit(budget_mb: int) -> MemoryLimit:
    """A budget, whatever the machine has."""
    return MemoryLimit(num_bytes=budget_mb * MB, reserve_bytes=0)


async def settle(rounds: int = 20) -> None:
    """Let everything happen that needs no clock."""
    for _ in range(rounds):
        await asyncio.sleep(0)
