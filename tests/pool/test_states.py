import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mlxm.errors import MlxmError, ModelBroken
from mlxm.frames import Generate
from mlxm.pool.options import LocalModel
from tests.pool.fakes import MB, FakeLauncher, FakeWorker, JumpingLoop, Stage, limit, settle

NAMES = ("a", "b", "c", "d")
SIZES_MB = {"a": 30, "b": 40, "c": 50, "d": 70}
BUDGET_MB = 100
LAST_WAIT_S = 600.0


class PoolMachine(RuleBasedStateMachine):
    """Requests come, end and leave; loads succeed, fail and crash; orders are given; time passes."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=JumpingLoop)
        self.asked: list[asyncio.Task[Any]] = []
        self.number = 0
        self.cut_short: set[str] = set()
        """Models that somebody wanted gone at once, whoever used them."""

    def go(self, work: Any) -> Any:
        """Do something, and all that follows without a clock."""

        async def both() -> Any:
            result = await work
            await settle()
            return result

        return self.runner.run(both())

    @initialize(policy=st.sampled_from(["lru", "lfu", "ttl"]), most=st.sampled_from([None, 1, 2]))
    def open(self, policy: Any, most: int | None) -> None:
        """A pool with room for two of the four, or fewer."""

        async def make() -> Stage:
            launcher = FakeLauncher(loads_at_once=False, answers_at_once=False)
            return Stage(
                launcher=launcher, budget_mb=BUDGET_MB, policy=policy, max_models=most, keep_alive_s=30, queue_s=20
            )

        self.stage: Stage = self.go(make())
        self.pool = self.stage.pool
        self.budget_bytes = BUDGET_MB * MB
        self.most = most
        self.folders = dict.fromkeys(NAMES, 0)

    def model(self, name: str) -> LocalModel:
        """The model as it is now."""
        model = self.stage.model(f"{name}{self.folders[name]}", SIZES_MB[name])
        return LocalModel(name=name, folder=Path(model.folder), context_length=None)

    @rule(name=st.sampled_from(NAMES), num=st.integers(1, 4))
    def ask(self, name: str, num: int) -> None:
        """Some requests at once; what becomes of each is checked at the end."""

        async def begin() -> None:
            for _ in range(num):
                self.number += 1
                self.asked.append(asyncio.create_task(self.answer(name, f"r{self.number}")))

        self.go(begin())

    async def answer(self, name: str, request_id: str) -> str:
        """A request's way, up to its one end."""
        try:
            async for _ in self.pool.generate(self.model(name), Generate(request_id=request_id, prompt_ids=(1,))):
                pass
        except MlxmError as error:
            if error.code == "draining" and name not in self.cut_short:
                raise AssertionError("somebody's model was taken away") from error
            return error.code
        return "answered"

    @rule(place=st.integers(0, 50))
    def leave(self, place: int) -> None:
        """Somebody does not wait any longer."""

        async def cancel() -> None:
            waiting = [task for task in self.asked if not task.done()]
            if waiting:
                waiting[place % len(waiting)].cancel()

        self.go(cancel())

    def living(self) -> list[FakeWorker]:
        """Workers that have not ended."""
        return [worker for worker in self.stage.launcher.workers if worker.end is None]

    @rule(fails=st.booleans(), place=st.integers(0, 50))
    def load(self, place: int, fails: bool) -> None:  # noqa: FBT001
        """A load comes to its end."""

        async def let() -> None:
            loading = [worker for worker in self.living() if worker.is_loading]
            if loading:
                loading[place % len(loading)].let_load(ModelBroken("A shard is missing.") if fails else None)

        self.go(let())

    @rule(place=st.integers(0, 50), says=st.booleans())
    def finish(self, place: int, says: bool) -> None:  # noqa: FBT001
        """A request is answered."""

        async def end() -> None:
            running = [(worker, request) for worker in self.living() for request in worker.streams]
            if running:
                worker, request = running[place % len(running)]
                if says:
                    worker.say(request)
                worker.finish(request)

        self.go(end())

    @rule(place=st.integers(0, 50))
    def crash(self, place: int) -> None:
        """A worker is killed."""

        async def die() -> None:
            living = self.living()
            if living:
                living[place % len(living)].die()

        self.go(die())

    @rule(seconds=st.sampled_from([0.3, 1.5, 25.0, 200.0]))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.go(asyncio.sleep(seconds))

    @rule(name=st.sampled_from(NAMES), pin=st.booleans())
    def order(self, name: str, pin: bool) -> None:  # noqa: FBT001
        """Somebody wants a model loaded."""

        async def begin() -> None:
            self.pool.load(self.model(name), pin=pin)

        self.go(begin())

    @rule(name=st.sampled_from(NAMES), now=st.booleans(), again=st.booleans())
    def end(self, name: str, now: bool, again: bool) -> None:  # noqa: FBT001
        """Somebody wants it gone, or started anew."""
        if now:
            self.cut_short.add(name)

        async def tell() -> None:
            try:
                if again:
                    self.pool.restart(name, now=now)
                else:
                    self.asked.append(asyncio.create_task(self.unload(name, now=now)))
            except MlxmError:
                pass

        self.go(tell())

    async def unload(self, name: str, *, now: bool) -> str:
        """It is gone, or there was none."""
        try:
            await self.pool.unload(name, now=now)
        except MlxmError as error:
            return error.code
        return "unloaded"

    @rule(name=st.sampled_from(NAMES))
    def replace_files(self, name: str) -> None:
        """The name leads to another folder from now on."""
        self.folders[name] += 1

    @rule(budget_mb=st.sampled_from([60, 100, 200]))
    def set_budget(self, budget_mb: int) -> None:
        """Somebody changes the budget; a smaller one takes effect as models become idle."""

        async def apply() -> None:
            self.pool.apply(msgspec.structs.replace(self.pool.options, memory=limit(budget_mb)))

        self.budget_bytes = max(budget_mb * MB, self.pool._room.used_bytes())
        self.go(apply())

    @invariant()
    def stays_within_the_budget(self) -> None:
        """Whatever happens."""
        used = self.pool._room.used_bytes()
        assert used <= self.budget_bytes
        assert sum(1 for slot in self.pool.slots() if slot.reserved_bytes) <= (self.most or 99)

    @invariant()
    def loads_once(self) -> None:
        """A model has one life at most that is not on its way out, and no second worker beside it."""
        staying = [slot for slot in self.pool.slots() if not self.pool.is_leaving(slot)]
        assert len({slot.model.name for slot in staying}) == len(staying)
        known = {id(slot.worker) for slot in self.pool.slots() if slot.worker is not None}
        loading = Counter(worker.name for worker in self.living() if worker.is_loading)
        loaded = [worker for worker in self.living() if worker.loaded is not None]
        assert all(id(worker) in known for worker in loaded)
        assert all(loading[name] <= sum(slot.model.name == name for slot in self.pool.slots()) for name in loading)

    def teardown(self) -> None:
        """In the end everybody who asked has been answered."""

        async def end() -> None:
            self.stage.launcher.loads_at_once = self.stage.launcher.answers_at_once = True
            for _ in range(50):
                for worker in self.living():
                    worker.let_load()
                    for request_id in list(worker.streams):
                        worker.finish(request_id)
                await asyncio.sleep(1)
            async with asyncio.timeout(LAST_WAIT_S):
                ends = await asyncio.gather(*self.asked, return_exceptions=True)
            assert not [end for end in ends if isinstance(end, Exception)]
            assert all(slot.num_leases == 0 for slot in self.pool.slots())
            await self.pool.close()
            assert not self.living()

        if self.asked or hasattr(self, "stage"):
            self.runner.run(end())
        self.runner.close()


PoolMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestPool = PoolMachine.TestCase
