from __future__ import annotations

import random
from collections.abc import Sequence
from heapq import heappop, heappush
from typing import Any

import pytest

from mlxm.engine.engine import Engine, EngineOptions
from mlxm.engine.plan import Plan
from mlxm.engine.request import Order
from mlxm.engine.scheduler import SchedulerOptions
from mlxm.errors import BY_CODE, Conflict, ContextTooLong, InvalidRequest, ModelBroken, OutOfMemory
from mlxm.frames import Delta, RequestEnded, RequestStarted
from mlxm.testing.runner import ScriptedRunner, facts_of
from mlxm.types import Sampling, Usage
from tests.engine.harness import SEED, VOCAB_SIZE, Harness, character, detokenizer, prompt_of, scripted

RUNNERS = pytest.mark.parametrize(
    "facts",
    [
        {"runs_ahead": runs_ahead, "shares_prefixes": shares_prefixes}
        for runs_ahead in (False, True)
        for shares_prefixes in (False, True)
    ],
    ids=["plain", "sharing", "ahead", "ahead sharing"],
)
AHEAD = pytest.mark.parametrize("runs_ahead", [False, True], ids=["in turn", "ahead"])


def test_a_request_is_started_streamed_and_ended() -> None:
    """A chunk, then an event for each token in a step of its own, the last with the terminal event."""
    harness = Harness()
    harness.add("a", prompt_of(40), 3)
    steps = []
    while harness.engine.has_work:
        steps.append([type(event) for event in harness.step()])
    assert steps == [[RequestStarted], [Delta], [Delta], [Delta, RequestEnded]]
    assert [delta.seq for delta in harness.deltas("a")] == [0, 1, 2]
    assert [delta.finish_reason for delta in harness.deltas("a")] == [None, None, "length"]
    assert scripted(prompt_of(40), 3) == harness.tokens("a")
    assert harness.text("a") == "".join(map(character, harness.tokens("a")))
    assert harness.end("a") == RequestEnded(request_id="a", usage=Usage(prompt_tokens=40, completion_tokens=3))
    harness.check_idle()
    assert harness.step() == ()


@RUNNERS
@pytest.mark.parametrize("max_rows", [1, 4, 16])
def test_tokens_do_not_depend_on_what_else_runs(facts: dict[str, Any], max_rows: int) -> None:
    """Prompts around the edges of blocks, answers that cross them, all together or one at a time."""
    harness = Harness(num_blocks=200, max_rows=max_rows, **facts)
    lengths = [1, 2, 31, 32, 33, 63, 64, 65, 100, 300]
    orders = [(f"r{length}", prompt_of(length, length), 5 + length % 40) for length in lengths]
    for order in orders:
        harness.add(*order)
        harness.step()
    harness.run().check_answers(orders)
    harness.check_idle()
    assert min(max_rows, 6) <= harness.runner.tally.max_rows <= max_rows


def test_sequences_join_and_leave_between_steps() -> None:
    """There is one step for all that run, and a short answer does not wait for a long one that began earlier."""
    harness = Harness()
    harness.add("long", prompt_of(3), 30)
    harness.step(5)
    harness.add("short", prompt_of(5, 1), 2)
    harness.run()
    widths = [len(plan.rows) for plan in harness.runner.plans]
    assert set(widths) == {0, 1, 2}
    assert widths.count(2) == 2
    ends = [event.request_id for event in harness.events if isinstance(event, RequestEnded)]
    assert ends == ["short", "long"]


@pytest.mark.parametrize(
    ("order", "kind", "words"),
    [
        ({"prompt": ()}, InvalidRequest, "prompt is empty"),
        ({"max_tokens": 0}, InvalidRequest, "max_tokens is 0"),
        ({"num_choices": 0}, InvalidRequest, "n is 0"),
        ({"prompt": (5, VOCAB_SIZE)}, ModelBroken, f"up to {VOCAB_SIZE}, the model knows {VOCAB_SIZE}"),
        ({"prompt": (-1, 5)}, ModelBroken, "the model knows"),
        ({"prompt": prompt_of(90), "max_tokens": 11}, ContextTooLong, "90 tokens and max_tokens asks for 11 .* 100"),
        ({"prompt": prompt_of(100), "max_tokens": None}, ContextTooLong, "100 tokens, but .* 100"),
    ],
)
def test_what_can_never_be_done_is_refused_at_once(order: dict[str, Any], kind: type, words: str) -> None:
    """Nothing is computed for it, and nothing kept."""
    harness = Harness(context_length=100)
    harness.add("a", **{"prompt": (1, 2), "max_tokens": 1} | order)
    assert not harness.engine.has_work
    end = harness.end("a")
    assert end.usage == Usage()
    assert end.fault is not None
    assert type(end.fault.error()) is kind
    with pytest.raises(kind, match=words):
        raise end.fault.error()


@pytest.mark.parametrize(("num_prompt", "max_tokens", "fits"), [(65, 32, True), (65, 33, False), (97, None, False)])
def test_what_the_pool_can_never_hold_is_refused_at_once(num_prompt: int, max_tokens: int | None, fits: bool) -> None:  # noqa: FBT001
    """Both numbers are named; of three blocks every place can be used, and the last token needs none."""
    harness = Harness(num_blocks=4)
    harness.add("a", prompt_of(num_prompt), max_tokens)
    harness.run()
    fault = harness.end("a").fault
    assert (fault is None) is fits
    if fault is not None:
        assert BY_CODE[fault.code] is ContextTooLong
        assert f"has {num_prompt} tokens" in fault.message
        assert "is 4 blocks, but the KV pool has 3, for 96 tokens" in fault.message


@pytest.mark.parametrize(("context_length", "num_tokens"), [(None, 37), (70, 10), (1_000, 37)])
def test_an_answer_without_a_limit_ends_where_context_or_memory_do(context_length: int | None, num_tokens: int) -> None:
    """It is as long as can be."""
    harness = Harness(num_blocks=4, context_length=context_length)
    harness.add("a", prompt_of(60), None)
    harness.run()
    assert len(harness.tokens("a")) == num_tokens
    assert harness.deltas("a")[-1].finish_reason == "length"


def test_an_id_in_use_is_not_taken_again() -> None:
    """It can be used again later."""
    harness = Harness()
    harness.add("a", (1,))
    with pytest.raises(Conflict, match="id a "):
        harness.add("a", (2,))
    harness.run()
    harness.add("a", (2,))
    assert harness.engine.has_work


# ── seeds ────────────────────────────────────────────────────────────────────────────────────────


def test_a_seed_gives_the_same_answer_in_any_company() -> None:
    """And the first choice is the same however many there are."""
    alone, company = Harness(), Harness()
    alone.add("a", prompt_of(40), 20, sampling=Sampling(seed=99))
    for number in range(5):
        company.add(f"b{number}", prompt_of(50, number), 30)
    company.step(3)
    company.add("a", prompt_of(40), 20, sampling=Sampling(seed=99), num_choices=3)
    alone.run()
    company.run()
    assert alone.tokens("a") == company.tokens("a") == scripted(prompt_of(40), 20, seed=99)
    assert scripted(prompt_of(40), 20, seed=99, choice=2) == company.tokens("a", 2)
    assert len({company.tokens("a", choice) for choice in range(3)}) == 3


def test_without_a_seed_one_is_drawn() -> None:
    """Negative and large seeds are as good as any."""
    harness = Harness()
    for name, seed in (("none", None), ("negative", -1), ("large", (1 << 64) - 1)):
        harness.add(name, (5,), 10, sampling=Sampling(seed=seed))
    harness.run()
    assert scripted((5,), 10, seed=SEED) == harness.tokens("none")
    assert harness.tokens("negative") == harness.tokens("large")


def test_drawn_seeds_differ() -> None:
    """Two requests without one are not answered alike, by an engine that draws its own."""
    runner = ScriptedRunner(facts_of())
    engine = Engine(runner, detokenizer(), EngineOptions(vocab_size=VOCAB_SIZE))
    for name in "ab":
        engine.add(Order(request_id=name, prompt_ids=(5,), max_tokens=1))
    engine.step()
    seeds = [row.seed for row in runner.plans[0].rows]
    assert len(set(seeds)) == 2
    assert all(0 <= seed < 1 << 64 for seed in seeds)


# ── stops, and running ahead ─────────────────────────────────────────────────────────────────────


def counting(tokens: Sequence[int], _seed: int) -> int:
    """The alphabet, again and again."""
    return (tokens[-1] + 1) % 26


@AHEAD
@pytest.mark.parametrize(
    ("stop", "text", "num_tokens"),
    [(("fgh",), "bcde", 7), (("gx", "ghi", "hij"), "bcdef", 8), (("zab",), "bcdefghijklmnopqrstuvwxy", 27)],
)
def test_stop_strings_are_found_across_tokens(
    runs_ahead: bool,  # noqa: FBT001
    stop: tuple[str, ...],
    text: str,
    num_tokens: int,
) -> None:
    """Nothing of them is emitted, what ran past them is thrown away, and who runs beside notices nothing."""
    harness = Harness(next_token=counting, runs_ahead=runs_ahead, max_rows=3)
    harness.add("a", (0,), 60, stop=stop)
    harness.add("beside", (7,), 60)
    harness.run()
    assert harness.text("a") == text
    assert harness.deltas("a")[-1].finish_reason == "stop"
    assert harness.end("a").usage.completion_tokens == num_tokens
    assert harness.text("beside") == "".join(character((8 + place) % 26) for place in range(60))
    harness.check_idle()


@AHEAD
def test_a_stop_token_ends_an_answer(runs_ahead: bool) -> None:  # noqa: FBT001
    """It is counted, has no text, and what followed it in flight is not part of any prefix."""
    harness = Harness(next_token=counting, runs_ahead=runs_ahead)
    harness.add("a", (0,) * 61, 60, stop_ids=frozenset({4, 9}))
    harness.run()
    assert harness.text("a") == "bcd"
    assert harness.end("a").usage == Usage(prompt_tokens=61, completion_tokens=4)
    harness.check_idle()
    assert harness.pool.num_cached == 2
    harness.add("b", (*(0,) * 61, 1, 2, 3, 4, 5), 3)
    harness.run()
    assert harness.text("b") == "ghi"


def test_the_next_step_is_launched_before_the_last_is_collected() -> None:
    """Where that is worth it; its rows go on with tokens that nobody has seen yet."""
    harness = Harness(runs_ahead=True)
    harness.add("a", prompt_of(3), 5)
    orders: list[str] = []
    harness.runner.faults.launch = lambda _plan: orders.append("launch")
    harness.runner.faults.collect = lambda _plan: orders.append("collect")
    harness.run()
    assert orders == ["launch", *["launch", "collect"] * 5, "collect"]
    assert [row.token for plan in harness.runner.plans for row in plan.rows] == [prompt_of(3)[-1], *[None] * 4]


def test_without_running_ahead_every_token_is_known() -> None:
    """A step is collected before the next is launched."""
    harness = Harness()
    harness.add("a", prompt_of(3), 5)
    harness.run()
    tokens = [row.token for plan in harness.runner.plans for row in plan.rows]
    assert tokens == [prompt_of(3)[-1], *harness.tokens("a")[:-1]]


# ── cancelling ───────────────────────────────────────────────────────────────────────────────────


@RUNNERS
def test_a_request_in_the_queue_can_be_cancelled(facts: dict[str, Any]) -> None:
    """It ends without having started, and cancelling it again, or one that nobody knows, does nothing."""
    harness = Harness(max_rows=1, **facts)
    for name in "abc":
        harness.add(name, prompt_of(5))
    harness.step()
    harness.cancel("b", "changed my mind")
    harness.cancel("b")
    harness.cancel("nobody")
    harness.run()
    assert harness.of("b") == [RequestEnded(request_id="b", usage=Usage(), cancelled="changed my mind")]
    assert harness.started() == ["a", "c"]
    harness.check_idle()


@RUNNERS
@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 5, 6])
def test_cancelling_frees_everything_at_once(facts: dict[str, Any], num_steps: int) -> None:
    """In the middle of the prompt or of the answer, with a step in flight or not."""
    harness = Harness(max_rows=2, num_blocks=20, **facts)
    harness.add("a", prompt_of(300), 50, num_choices=2)
    harness.step(num_steps)
    harness.cancel("a")
    assert harness.pool.num_used == 0
    assert harness.runner.num_known == 0
    assert harness.end("a").cancelled == "enough"
    assert harness.end("a").usage.completion_tokens == len(harness.tokens("a")) + len(harness.tokens("a", 1))
    harness.add("b", prompt_of(300, 1), 20)
    harness.run().check_answers([("b", prompt_of(300, 1), 20)])
    harness.check_idle()
    assert len(harness.of("a")) == len(harness.deltas("a")) + len(harness.deltas("a", 1)) + 2


def test_everything_can_be_cancelled() -> None:
    """Those that run and those that wait."""
    harness = Harness(max_rows=2, runs_ahead=True)
    for number in range(5):
        harness.add(f"r{number}", prompt_of(40, number), 50)
    harness.step(3)
    harness.events += harness.engine.cancel_all("leaving")
    assert [harness.end(f"r{number}").cancelled for number in range(5)] == ["leaving"] * 5
    harness.run(2).check_idle()


@pytest.mark.slow
@AHEAD
def test_of_many_requests_half_are_cancelled(runs_ahead: bool, long_soak: bool) -> None:  # noqa: FBT001
    """At random times; the others are answered as if alone, and all blocks come back."""
    random_ = random.Random(5)
    harness = Harness(num_blocks=60, max_rows=12, runs_ahead=runs_ahead)
    free_before = harness.pool.num_available
    num_requests = 10_000 if long_soak else 1_000
    doomed = set(random_.sample(range(num_requests), num_requests // 2))
    due: list[tuple[int, int]] = []
    answered = []
    for number in range(num_requests):
        prompt = (*prompt_of(random_.choice([0, 33, 70]), 1), *prompt_of(random_.randint(1, 40), number))
        order = (f"r{number}", prompt, random_.randint(1, 12))
        harness.add(*order, priority=random_.randrange(3))
        if number in doomed:
            heappush(due, (number + random_.randrange(12), number))
        else:
            answered.append(order)
        harness.step(random_.randrange(3))
        while due and due[0][0] <= number:
            harness.cancel(f"r{heappop(due)[1]}")
    harness.events += harness.engine.cancel_all("the last ones") if due else ()
    harness.run()
    assert harness.pool.num_available == free_before
    harness.check_idle()
    num_cancelled = sum(isinstance(event, RequestEnded) and event.cancelled is not None for event in harness.events)
    assert num_cancelled > num_requests // 4
    ended = {event.request_id: event for event in harness.events if isinstance(event, RequestEnded)}
    assert len(ended) == num_requests
    tokens: dict[str, list[int]] = {}
    for event in harness.events:
        if isinstance(event, Delta):
            tokens.setdefault(event.request_id, []).extend(event.token_ids)
    for name, prompt, num_tokens in answered:
        if ended[name].cancelled is None:
            assert scripted(prompt, num_tokens) == tuple(tokens[name])


@AHEAD
def test_ten_thousand_random_operations_leak_nothing(runs_ahead: bool) -> None:  # noqa: FBT001
    """Orders, steps, cancels, forks and steps that fail, in a pool that is too small."""
    random_ = random.Random(11)
    harness = Harness(num_blocks=14, max_rows=5, runs_ahead=runs_ahead, options=SchedulerOptions(expected_tokens=0))

    def fail_sometimes(_plan: Plan) -> None:
        if random_.random() < 0.02:
            raise OutOfMemory("There is no memory left.")

    harness.runner.faults.launch = harness.runner.faults.collect = fail_sometimes
    for number in range(10_000):
        action = random_.random()
        if action < 0.12 and len(harness.scheduler.queue) < 20:
            prompt = (*prompt_of(random_.choice([0, 33, 70]), 1), *prompt_of(random_.randint(1, 40), number))
            choices = random_.choice([1, 1, 1, 3])
            harness.add(f"r{number}", prompt, random_.randint(1, 150), num_choices=choices, priority=number % 3)
        elif action < 0.15 and harness.engine._requests:
            harness.cancel(random_.choice(list(harness.engine._requests)))
        else:
            harness.step()
        if number % 100 == 0:
            harness.check_pool()
    harness.run()
    harness.check_idle()
    assert harness.engine.stats.preemptions > 0
    assert harness.runner.tally.num_copies > 0
