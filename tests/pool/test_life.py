import asyncio
import math
import re
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from mlxm.errors import Draining, MlxmError, ModelBroken, NotFound, OutOfMemory, StoreError, WorkerDied
from mlxm.frames import Delta, Generate, RequestEnded, RequestStarted, Stats
from mlxm.pool.ledger import PrivateLedger
from mlxm.pool.options import Parts
from mlxm.pool.pool import LocalModel, Pool
from mlxm.pool.status import Level
from tests.pool.fakes import MB, FakeLauncher, Stage, jump, limit, settle

TOO_LONG = re.compile(r"context|token|prompt|too long|too large|length|maximum|exceed|shorten|reduce", re.IGNORECASE)
"""Words by which programs take an error for a conversation that has grown too long."""


def on_stage(test: Callable[[Stage], Awaitable[None]], **options: Any) -> None:
    """Run a test on a pool of fakes, in no time, and close it."""

    async def run() -> None:
        stage = Stage(**options)
        async with asyncio.timeout(100_000):
            await test(stage)
        await stage.pool.close()

    jump(run())


def slow() -> FakeLauncher:
    """Workers whose requests go on until they are told to end."""
    return FakeLauncher(answers_at_once=False)


async def until(holds: Callable[[], bool]) -> None:
    """Wait for what nobody tells; time passes."""
    while not holds():  # noqa: ASYNC110  # as said
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(("policy", "gone"), [("lru", "a"), ("lfu", "b"), ("ttl", "c")])
def test_each_policy_lets_another_one_go(policy: str, gone: str) -> None:
    """The one unused for longest, the one used least, the one whose time ends first."""

    async def test(stage: Stage) -> None:
        a, b, c, d = (stage.model(name, 30) for name in "abcd")
        for model in (a, a, a, b, c, c):
            await stage.ask(model)
            await asyncio.sleep(1)
        stage.pool.load(c, ttl_s=60)
        await stage.ask(d)
        assert set(stage.states()) == {"a", "b", "c", "d"} - {gone}

    on_stage(test, policy=policy)


def test_an_unused_model_goes_in_time() -> None:
    """Each after its own; a pinned one never, and one in use not before it is done."""

    async def test(stage: Stage) -> None:
        a, b, c, d = (stage.model(name, 20) for name in "abcd")
        stage.pool.load(a)
        stage.pool.load(b, ttl_s=5)
        stage.pool.load(c, pin=True)
        stage.pool.load(d, ttl_s=math.inf)
        using = asyncio.create_task(stage.ask(b))
        await settle()
        await asyncio.sleep(9)
        assert set(stage.states()) == set("abcd")
        assert stage.pool.model("a").expires_s == pytest.approx(21, abs=0.5)
        assert (stage.pool.model("b").expires_s, stage.pool.model("c").expires_s) == (None, None)
        stage.worker("b").finish("r")
        await using
        await asyncio.sleep(7)
        assert set(stage.states()) == set("acd")
        await asyncio.sleep(20)
        assert set(stage.states()) == set("cd")

    on_stage(test, launcher=slow(), keep_alive_s=30)


def test_an_eviction_storm_leaves_the_pinned_ones() -> None:
    """However many others come and go."""

    async def test(stage: Stage) -> None:
        kept, preloaded = stage.model("kept", 20), stage.model("preloaded", 20)
        stage.pool.keep([preloaded])
        stage.pool.load(kept, pin=True)
        for number in range(20):
            await stage.ask(stage.model(f"m{number}", 50))
        assert len(stage.launcher.named("kept")) == len(stage.launcher.named("preloaded")) == 1
        assert stage.pool.model("preloaded").pinned
        stage.pool.keep([])
        assert not stage.pool.model("preloaded").pinned
        await stage.ask(stage.model("large", 80))
        assert set(stage.states()) == {"kept", "large"}

    on_stage(test)


def test_no_more_models_than_allowed() -> None:
    """However small they are; where all places are pinned nobody waits for one."""

    async def test(stage: Stage) -> None:
        for name in "abc":
            await stage.ask(stage.model(name, 1))
        assert set(stage.states()) == {"b", "c"}
        for name in "bc":
            stage.pool.load(stage.model(name, 1), pin=True)
        with pytest.raises(OutOfMemory, match="2 models may be loaded, and as many are pinned"):
            await stage.ask(stage.model("d", 1))

    on_stage(test, max_models=2)


def test_what_can_never_fit_is_refused_at_once() -> None:
    """With both numbers, and the ones in the way."""

    async def test(stage: Stage) -> None:
        with pytest.raises(OutOfMemory, match=r"needs 200.0 MB of memory; models may take 100.0 MB\."):
            await stage.ask(stage.model("huge", 200))
        stage.pool.load(stage.model("pinned", 60), pin=True)
        with pytest.raises(OutOfMemory, match="beside the pinned ones") as caught:
            await stage.ask(stage.model("other", 60))
        assert caught.value.retry_after_s is not None
        assert asyncio.get_running_loop().time() < 1

    on_stage(test)


def test_waiting_for_memory_has_an_end() -> None:
    """Then it is said in words that nobody takes for a conversation that is too long; others are served on."""

    async def test(stage: Stage) -> None:
        a = stage.model("a", 80)
        using = asyncio.create_task(stage.ask(a))
        await settle()
        with pytest.raises(OutOfMemory) as caught:
            await stage.ask(stage.model("b", 80))
        assert not TOO_LONG.search(f"{caught.value.message} {caught.value.hint}")
        assert asyncio.get_running_loop().time() == pytest.approx(20, abs=1)
        assert stage.states()["b"] == "failed"
        stage.worker("a").finish("r")
        assert isinstance((await using)[-1], RequestEnded)

    on_stage(test, launcher=slow(), queue_s=20.0)


def test_too_many_that_wait_are_refused() -> None:
    """At once, in such words too."""

    async def test(stage: Stage) -> None:
        using = asyncio.create_task(stage.ask(stage.model("a", 80)))
        await settle()
        b = stage.model("b", 80)
        waiting = [asyncio.create_task(stage.ask(b, f"r{number}")) for number in range(2)]
        await settle()
        with pytest.raises(OutOfMemory, match="too many requests wait") as caught:
            await stage.ask(b, "r3")
        assert not TOO_LONG.search(f"{caught.value.message} {caught.value.hint}")
        stage.launcher.answers_at_once = True
        stage.worker("a").finish("r")
        await asyncio.gather(using, *waiting)

    on_stage(test, launcher=slow(), max_queued=2)


def test_a_model_that_waits_gets_the_place_of_one_that_is_always_in_use() -> None:
    """Who comes for that one meanwhile waits for its return; three with room for two are all served."""

    async def test(stage: Stage) -> None:
        models = [stage.model(name, 45) for name in "abc"]
        served = dict.fromkeys("abc", 0)

        async def client(model: LocalModel, number: int) -> None:
            for turn in range(20):
                await stage.ask(model, f"{number}.{turn}")
                served[model.name] += 1

        async def answer() -> None:
            while True:
                await asyncio.sleep(0.1)
                for worker in stage.launcher.workers:
                    for request in list(worker.streams)[:1]:
                        worker.finish(request)
                assert stage.pool._room.used_bytes() <= 100 * MB

        answering = asyncio.create_task(answer())
        await asyncio.gather(*(client(model, number) for number, model in enumerate(models * 3)))
        answering.cancel()
        assert set(served.values()) == {60}

    on_stage(test, launcher=slow())


def test_a_load_is_told_to_whoever_watches() -> None:
    """Those who come late see where it is, and all see how it ends."""

    async def test(stage: Stage) -> None:
        async def watch() -> list[tuple[str, int | None]]:
            return [(row.state, row.done_bytes) async for row in stage.pool.watch("a")]

        stage.pool.load(stage.model("a"))
        first = asyncio.create_task(watch())
        await settle()
        late = asyncio.create_task(watch())
        await settle()
        stage.worker("a").let_load()
        assert (await first)[0][0] == "waiting"
        assert (await first)[-1] == ("ready", 100)
        assert (await late)[0] == ("loading", 0)
        assert (await late)[-1] == ("ready", 100)
        stage.pool.load(stage.model("b"))
        failing = asyncio.create_task(watch_name(stage.pool, "b"))
        await settle()
        stage.worker("b").let_load(ModelBroken("A shard is missing."))
        assert (await failing)[-1] == ("failed", "A shard is missing.", "model_broken")
        with pytest.raises(NotFound):
            await watch_name(stage.pool, "nobody")

    on_stage(test, launcher=FakeLauncher(loads_at_once=False))


async def watch_name(pool: Pool, name: str) -> list[tuple[str, str | None, str | None]]:
    """All that is told of a model."""
    return [(row.state, row.reason, row.code) async for row in pool.watch(name)]


def test_a_failed_load_is_not_tried_again_at_once() -> None:
    """Each time it takes longer, until somebody says so, or the files are others."""

    async def test(stage: Stage) -> None:
        a = stage.model("a")
        starts: list[float] = []
        for _ in range(200):
            num_before = len(stage.launcher.workers)
            asking = asyncio.create_task(stage.ask(a))
            await settle()
            if len(stage.launcher.workers) > num_before:
                starts.append(asyncio.get_running_loop().time())
                stage.worker("a").let_load(ModelBroken("A shard is missing."))
            with pytest.raises(ModelBroken, match="A shard is missing"):
                await asking
            await asyncio.sleep(0.1)
        gaps = [later - earlier for earlier, later in pairwise(starts)]
        assert gaps == pytest.approx([1, 2, 4, 8], abs=0.2)
        stage.launcher.loads_at_once = True
        with pytest.raises(ModelBroken):
            await stage.ask(a)
        stage.model("other")
        await stage.ask(msgspec.structs.replace(a, folder=a.folder.with_name("other")))
        assert stage.states() == {"a": "ready"}

    on_stage(test, launcher=FakeLauncher(loads_at_once=False))


def test_a_dead_worker_is_replaced_and_asked_again() -> None:
    """Who has no answer yet notices nothing; who has some is told; who waits for the new one gets it."""

    async def test(stage: Stage) -> None:
        a = stage.model("a")
        silent, spoken = (asyncio.create_task(stage.ask(a, name)) for name in ("silent", "spoken"))
        await settle()
        stage.worker("a").say("spoken")
        await settle()
        stage.worker("a").die()
        with pytest.raises(WorkerDied, match="SIGKILL"):
            await spoken
        await settle()
        stage.worker("a").say("silent")
        stage.worker("a").finish("silent")
        assert [type(event) for event in await silent] == [RequestStarted, Delta, RequestEnded]
        assert len(stage.launcher.workers) == 2

    on_stage(test, launcher=slow())


def test_a_model_that_keeps_dying_is_broken() -> None:
    """With its last words, and without a loop; somebody has to say that it is to be tried again."""

    async def test(stage: Stage) -> None:
        a = stage.model("a")
        stage.pool.load(a, pin=True)
        for num in range(3):
            await until(lambda num=num: len(stage.launcher.workers) == num + 1)  # type: ignore[misc]
            await settle()
            stage.worker("a").die()
        with pytest.raises(ModelBroken, match=r"died 3 times.*SIGKILL") as caught:
            await stage.ask(a)
        assert caught.value.hint == "Look into the log, then: mlxm restart a"
        await asyncio.sleep(1000)
        assert (stage.states(), len(stage.launcher.workers)) == ({"a": "broken"}, 3)
        assert stage.pool._room.used_bytes() == 0
        stage.pool.restart("a")
        await stage.ask(a)
        assert stage.states() == {"a": "ready"}

    on_stage(test, max_deaths=3)


def test_deaths_long_ago_are_forgotten() -> None:
    """A model that dies once an hour is restarted each time, at once."""

    async def test(stage: Stage) -> None:
        a = stage.model("a")
        for _ in range(10):
            await stage.ask(a)
            stage.worker("a").die()
            await asyncio.sleep(3600)
        assert stage.states() == {"a": "ready"}

    on_stage(test, max_deaths=3)


def test_unload_waits_or_does_not() -> None:
    """For what runs; with `now` that is cut short. What is not there cannot go."""

    async def test(stage: Stage) -> None:
        a, b = stage.model("a"), stage.model("b")
        polite, cut = asyncio.create_task(stage.ask(a)), asyncio.create_task(stage.ask(b))
        await settle()
        going = asyncio.create_task(stage.pool.unload("a"))
        await asyncio.sleep(5)
        assert not going.done()
        stage.worker("a").finish("r")
        await going
        assert isinstance((await polite)[-1], RequestEnded)
        await stage.pool.unload("b", now=True)
        with pytest.raises(Draining):
            await cut
        assert (stage.states(), stage.pool._room.used_bytes()) == ({}, 0)
        with pytest.raises(NotFound):
            await stage.pool.unload("a")
        with pytest.raises(NotFound):
            stage.pool.restart("a")
        with pytest.raises(NotFound):
            stage.pool.model("a")

    on_stage(test, launcher=slow())


def test_a_load_that_is_not_wanted_any_more_ends() -> None:
    """Who waits for it is told to ask again."""

    async def test(stage: Stage) -> None:
        asking = asyncio.create_task(stage.ask(stage.model("a")))
        await settle()
        await stage.pool.unload("a", now=True)
        with pytest.raises(Draining, match="a is being unloaded"):
            await asking
        assert stage.worker("a").end is not None

    on_stage(test, launcher=FakeLauncher(loads_at_once=False))


def test_a_restart_replaces_the_worker() -> None:
    """The row is there all the time; the old one finishes what it runs, or with `now` does not."""

    async def test(stage: Stage) -> None:
        a = stage.model("a", 30)
        first = asyncio.create_task(stage.ask(a, "first"))
        await settle()
        old = stage.worker("a")
        stage.pool.restart("a")
        assert "a" in stage.states()
        await settle()
        assert stage.worker("a") is not old
        old.finish("first")
        await first
        second = asyncio.create_task(stage.ask(a, "second"))
        await settle()
        stage.pool.restart("a", now=True)
        with pytest.raises(Draining):
            await second
        await until(lambda: stage.states() == {"a": "ready"})
        assert len(stage.launcher.workers) == 3

    on_stage(test, launcher=slow())


def test_a_pinned_model_makes_room_for_its_successor() -> None:
    """It leaves for it, and is none of those that the successor would have to fit in beside."""

    async def test(stage: Stage) -> None:
        a = stage.model("a", 60)
        stage.pool.load(a, pin=True)
        await until(lambda: stage.states() == {"a": "ready"})
        stage.pool.restart("a")
        await settle()
        await until(lambda: stage.pool.model("a").state not in ("queued", "loading"))
        assert stage.states() == {"a": "ready"}
        assert len(stage.launcher.workers) == 2

    on_stage(test)


def test_a_context_is_given_the_room_it_needs() -> None:
    """The same one again changes nothing."""

    async def test(stage: Stage) -> None:
        a = stage.model("a", 10, least_kv_bytes=MB, usual_kv_bytes=2 * MB, most_kv_bytes=4 * MB)
        await stage.ask(a)
        assert (stage.worker("a").kv_bytes, stage.pool.model("a").reserved_bytes) == (4 * MB, 14 * MB)
        stage.pool.load(a, context=20)
        await settle()
        await until(lambda: stage.states() == {"a": "ready"})
        assert stage.worker("a").kv_bytes == 20 * MB
        stage.pool.load(a, context=20)
        await stage.ask(a)
        assert len(stage.launcher.workers) == 2

    on_stage(test)


def test_idle_models_go_for_a_usual_conversation_and_not_for_more() -> None:
    """What is beyond that is taken only where it is free; a busy neighbour leaves at least what is needed."""

    async def test(stage: Stage) -> None:
        kv = {"least_kv_bytes": 5 * MB, "usual_kv_bytes": 20 * MB, "most_kv_bytes": 60 * MB}
        await stage.ask(stage.model("a", 50))
        await stage.ask(stage.model("b", 20, **kv))
        assert (set(stage.states()), stage.worker("b").kv_bytes) == ({"a", "b"}, 30 * MB)
        await stage.ask(stage.model("c", 30, **kv))
        assert (set(stage.states()), stage.worker("c").kv_bytes) == ({"b", "c"}, 20 * MB)

    on_stage(test)


@pytest.mark.parametrize(("level", "survivors"), [("warning", ["ab", "b", ""]), ("critical", ["b", "", ""])])
def test_pressure_shrinks_caches_and_then_lets_idle_models_go(level: Level, survivors: list[str]) -> None:
    """One after another for as long as it lasts; those in use and pinned ones stay."""

    async def test(stage: Stage) -> None:
        stage.launcher.answers_at_once = True
        for name in "ab":
            await stage.ask(stage.model(name, 10))
        stage.launcher.answers_at_once = False
        stage.pool.load(stage.model("pinned", 10), pin=True)
        using = asyncio.create_task(stage.ask(stage.model("busy", 10)))
        await settle()
        await asyncio.sleep(0.5)
        stage.memory.level = level
        for names in survivors:
            await asyncio.sleep(1)
            assert set(stage.states()) == {*names, "pinned", "busy"}
            assert stage.worker("busy").num_shrunk == 1
        stage.memory.level = "normal"
        await asyncio.sleep(1)
        stage.memory.level = "warning"
        await asyncio.sleep(1)
        assert stage.worker("busy").num_shrunk == 2
        stage.worker("busy").finish("r")
        await using

    on_stage(test, launcher=slow())


def test_memory_that_others_have_taken_is_not_there() -> None:
    """The budget may allow it, the machine does not: an idle model goes for it."""

    async def test(stage: Stage) -> None:
        await stage.ask(stage.model("a", 40))
        stage.memory.available_bytes = 10 * MB
        asking = asyncio.create_task(stage.ask(stage.model("b", 40)))
        await asyncio.sleep(0.5)
        stage.memory.available_bytes = 50 * MB
        await asking
        assert stage.states() == {"b": "ready"}

    on_stage(test)


def test_a_model_that_takes_more_than_was_thought_is_made_room_for() -> None:
    """It is told to shrink, and idle ones go."""

    async def test(stage: Stage) -> None:
        await stage.ask(stage.model("a", 40))
        await stage.ask(stage.model("b", 40))
        stage.worker("b").stats = Stats(active_bytes=60 * MB, cache_bytes=10 * MB)
        assert stage.pool.model("b").memory_bytes == 70 * MB
        await asyncio.sleep(1.1)
        assert (stage.states(), stage.worker("b").num_shrunk) == ({"b": "ready"}, 1)

    on_stage(test)


def test_options_change_while_it_works() -> None:
    """A smaller budget has idle models go, a larger one lets in who waits."""

    async def test(stage: Stage) -> None:
        for name in "ab":
            await stage.ask(stage.model(name, 40))
        stage.pool.apply(msgspec.structs.replace(stage.options, memory=limit(50)))
        await asyncio.sleep(1.1)
        assert stage.states() == {"b": "ready"}
        stage.launcher.answers_at_once = False
        using = asyncio.create_task(stage.ask(stage.model("b", 40)))
        await settle()
        waiting = asyncio.create_task(stage.ask(stage.model("c", 40), "c"))
        await asyncio.sleep(0.1)
        assert stage.states()["c"] == "queued"
        stage.pool.apply(msgspec.structs.replace(stage.options, memory=limit(100), has_spare=False))
        await until(lambda: "c" in stage.worker("c").streams if stage.launcher.named("c") else False)
        assert stage.launcher.spares[-1] is False
        for name in "bc":
            for request in list(stage.worker(name).streams):
                stage.worker(name).finish(request)
        await asyncio.gather(using, waiting)
        assert (await stage.pool.status()).budget_bytes == 100 * MB

    on_stage(test)


class FullLedger(PrivateLedger):
    """Other processes take some, give it back later, and then the disk is full."""

    def __init__(self) -> None:
        self.others_bytes = 80 * MB
        self.error: MlxmError | None = None
        self.refusals = 0

    async def promise(self, num_bytes: int, budget_bytes: int) -> bool:
        """What is left, once the others have left it."""
        if self.error is not None:
            raise self.error
        if self.refusals:
            self.refusals -= 1
            return num_bytes == 0
        return num_bytes + self.others_bytes <= budget_bytes

    async def others(self) -> int:
        """What they take."""
        return self.others_bytes


def test_what_other_processes_take_is_waited_for() -> None:
    """A model loads once it is free; a ledger that cannot be written fails no model that is there already."""

    async def test() -> None:
        stage, ledger = Stage(), FullLedger()
        parts = Parts(
            launcher=stage.launcher,
            ledger=ledger,
            estimate=stage._estimate,
            probe=stage.memory,
            on_trouble=stage.troubles.append,
        )
        stage.pool = Pool(stage.options, parts)
        asking = asyncio.create_task(stage.ask(stage.model("a")))
        await asyncio.sleep(1)
        assert stage.states() == {"a": "queued"}
        ledger.others_bytes, ledger.refusals = 0, 1
        await asking
        ledger.error = StoreError("The disk is full.")
        await stage.pool.unload("a")
        assert stage.troubles == [ledger.error]
        with pytest.raises(StoreError):
            await stage.ask(stage.model("b"))
        ledger.error = None
        await stage.pool.close()

    jump(test())


def test_a_worker_that_dies_while_it_loads_is_tried_once_more() -> None:
    """It may have died of a store for keys and values that the next one leaves alone."""

    async def test(stage: Stage) -> None:
        asking = asyncio.create_task(stage.ask(stage.model("a")))
        await settle()
        stage.worker("a").die()
        await settle()
        stage.worker("a").let_load()
        await asking
        assert len(stage.launcher.workers) == 2
        failing = asyncio.create_task(stage.ask(stage.model("b")))
        for _ in range(2):
            await settle()
            stage.worker("b").die()
        with pytest.raises(WorkerDied):
            await failing
        assert stage.states()["b"] == "failed"

    on_stage(test, launcher=FakeLauncher(loads_at_once=False))


def test_a_pinned_model_that_failed_is_tried_again_by_itself() -> None:
    """In its time."""

    async def test(stage: Stage) -> None:
        stage.pool.load(stage.model("a"), pin=True)
        await settle()
        stage.worker("a").let_load(ModelBroken("The disk is away."))
        await settle()
        assert stage.states() == {"a": "failed"}
        stage.launcher.loads_at_once = True
        await asyncio.sleep(2.1)
        assert stage.states() == {"a": "ready"}

    on_stage(test, launcher=FakeLauncher(loads_at_once=False))


def test_a_dead_worker_is_noticed_before_anybody_has_told() -> None:
    """A request that comes in between goes to the next one."""

    async def test(stage: Stage) -> None:
        a = stage.model("a")
        await stage.ask(a)
        stage.worker("a").die()
        await stage.ask(a)
        assert len(stage.launcher.workers) == 2

    on_stage(test)


def test_a_request_goes_on_with_what_it_began_with() -> None:
    """Whatever is set meanwhile: it is neither moved nor cut short."""

    async def test(stage: Stage) -> None:
        using = asyncio.create_task(stage.ask(stage.model("a", 80)))
        await settle()
        stage.pool.apply(msgspec.structs.replace(stage.options, memory=limit(10), keep_alive_s=0.1, max_models=1))
        await asyncio.sleep(30)
        stage.worker("a").say("r")
        stage.worker("a").finish("r")
        assert [type(event) for event in await using] == [RequestStarted, Delta, RequestEnded]
        await asyncio.sleep(2)
        assert stage.states() == {}

    on_stage(test, launcher=slow())


def test_nothing_is_taken_after_the_end() -> None:
    """Whoever comes then is told."""

    async def test(stage: Stage) -> None:
        a = stage.model("a")
        await stage.ask(a)
        await stage.pool.close()
        with pytest.raises(Draining):
            await stage.ask(a)
        with pytest.raises(Draining):
            stage.pool.load(a)
        stage.worker("a").die()
        request = Generate(request_id="r", prompt_ids=(1,))
        with pytest.raises(Draining):
            await anext(stage.pool.generate(a, request))

    on_stage(test)
