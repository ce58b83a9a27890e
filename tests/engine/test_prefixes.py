from __future__ import annotations

from typing import Any

import pytest

from mlxm.engine.pace import PaceOptions
from mlxm.engine.plan import Plan
from mlxm.types import Usage
from tests.engine.harness import Harness, prompt_of, scripted

AHEAD = pytest.mark.parametrize("runs_ahead", [False, True], ids=["in turn", "ahead"])


def after(harness: Harness, **order: Any) -> Harness:
    """The same engine when one more request is through."""
    harness.add(**{"request_id": "b", "prompt": prompt_of(100), "max_tokens": 5} | order)
    return harness.run()


def filled(num_prompt: int = 100, **facts: Any) -> Harness:
    """An engine that has answered one prompt."""
    harness = Harness(**facts)
    harness.add("a", prompt_of(num_prompt), 5)
    return harness.run()


# ── reuse ────────────────────────────────────────────────────────────────────────────────────────


@AHEAD
@pytest.mark.parametrize(("num_prompt", "num_cached"), [(20, 0), (32, 0), (33, 32), (64, 32), (65, 64), (100, 96)])
def test_a_prompt_seen_before_is_not_computed_again(num_prompt: int, num_cached: int, runs_ahead: bool) -> None:  # noqa: FBT001
    """Except for its last full block's rest; its last token always runs, and the answer is the same."""
    harness = filled(num_prompt, runs_ahead=runs_ahead)
    num_computed = harness.runner.tally.num_chunk_tokens
    after(harness, prompt=prompt_of(num_prompt))
    assert harness.end("b").usage.cached_tokens == num_cached
    assert harness.runner.tally.num_chunk_tokens - num_computed == num_prompt - 1 - num_cached
    assert harness.tokens("a") == harness.tokens("b") == scripted(prompt_of(num_prompt), 5)
    harness.check_idle()


def test_an_answer_is_a_prefix_too() -> None:
    """The next turn of a conversation finds what was said."""
    harness = Harness()
    harness.add("a", prompt_of(40), 60)
    harness.run()
    conversation = (*prompt_of(40), *harness.tokens("a"), *prompt_of(10, 5))
    after(harness, prompt=conversation)
    assert harness.end("b").usage == Usage(prompt_tokens=110, completion_tokens=5, cached_tokens=96)
    assert scripted(conversation, 5) == harness.tokens("b")


def test_another_scope_shares_nothing() -> None:
    """The same tokens mean something else to another adapter or key."""
    harness = after(filled(), scope=b"another")
    assert harness.end("b").usage.cached_tokens == 0
    after(harness, request_id="c", scope=b"another")
    assert harness.end("c").usage.cached_tokens == 96


def test_where_prefixes_are_not_shared_nothing_is_found() -> None:
    """The state lies elsewhere than in blocks."""
    harness = after(filled(shares_prefixes=False))
    assert harness.end("b").usage.cached_tokens == 0
    assert harness.pool.num_cached == 0
    assert harness.engine.stats.prefix_queried_tokens == 0


def test_a_hit_counts_only_when_it_was_of_use() -> None:
    """Found is not reused: a request cancelled before its first step has saved nothing."""
    harness = filled(runs_ahead=True)
    harness.add("b", prompt_of(100), 5)
    harness.step()
    assert harness.pool.num_used == 4
    harness.cancel("b")
    assert harness.end("b").usage == Usage(prompt_tokens=100)
    harness.run()
    assert (harness.engine.stats.prefix_hit_tokens, harness.engine.stats.prefix_queried_tokens) == (0, 200)
    after(harness, request_id="c")
    assert (harness.engine.stats.prefix_hit_tokens, harness.engine.stats.prefix_queried_tokens) == (96, 300)


def test_a_hit_survives_a_step_that_is_lost() -> None:
    """It counts once, when the step has succeeded at last."""
    harness = filled()
    lost = iter([True, False, False])

    def fail_once(_plan: Plan) -> None:
        if next(lost, False):
            raise OSError

    harness.runner.faults.collect = fail_once
    harness.add("c", prompt_of(120, 3), 5)
    after(harness, prompt=prompt_of(110))
    assert harness.end("b").fault is None
    assert harness.end("b").usage.cached_tokens == 96
    assert harness.engine.stats.prefix_hit_tokens == 96


def test_a_prefix_is_evicted_only_for_those_who_need_its_blocks() -> None:
    """A small request takes free blocks; a large one takes the end of the prefix first."""
    harness = filled(num_blocks=9)
    after(harness, request_id="small", prompt=prompt_of(40, 1))
    assert harness.pool.num_cached == 4
    after(harness, request_id="large", prompt=prompt_of(130, 2))
    after(harness, prompt=prompt_of(100))
    assert harness.end("b").usage.cached_tokens == 64
    assert scripted(prompt_of(100), 5) == harness.tokens("b")


@AHEAD
def test_prompts_that_come_together_compute_what_they_share_once(runs_ahead: bool) -> None:  # noqa: FBT001
    """The others wait for the first to fill the blocks, instead of filling their own."""
    harness = Harness(num_blocks=200, runs_ahead=runs_ahead)
    orders = [(f"r{number}", (*prompt_of(1_024), *prompt_of(20, number)), 8) for number in range(8)]
    for order in orders:
        harness.add(*order)
    harness.run().check_answers(orders)
    assert harness.runner.tally.num_chunk_tokens == 1_024 + 8 * 19
    assert [harness.end(name).usage.cached_tokens for name, _, _ in orders] == [0, *[1_024] * 7]


@AHEAD
def test_who_waits_for_a_prefix_goes_on_when_its_owner_is_cancelled(runs_ahead: bool) -> None:  # noqa: FBT001
    """With what there is until then."""
    harness = Harness(num_blocks=200, runs_ahead=runs_ahead)
    harness.add("a", prompt_of(2_000), 5)
    harness.add("b", prompt_of(2_000), 5)
    harness.step(2)
    harness.cancel("a")
    harness.run().check_answers([("b", prompt_of(2_000), 5)])
    assert harness.end("b").usage.cached_tokens in (512, 1_024)


@AHEAD
def test_a_prompt_half_computed_goes_on_with_what_another_has_computed(runs_ahead: bool) -> None:  # noqa: FBT001
    """One that overtakes it by priority fills blocks for both."""
    harness = Harness(pace=PaceOptions(max_chunk_tokens=64, min_chunk_tokens=8), runs_ahead=runs_ahead)
    orders = [("first", prompt_of(400), 5), ("high", prompt_of(400), 5)]
    harness.add(*orders[0])
    harness.step(2)
    harness.add(*orders[1], priority=0)
    harness.run().check_answers(orders)
    assert harness.runner.tally.num_chunk_tokens == 384 + 2 * 15
    cached = [harness.end(name).usage.cached_tokens for name, _, _ in orders]
    assert runs_ahead or min(cached) >= 32
    assert sum(cached) == 384


@pytest.mark.parametrize(("chunk", "runs_ahead"), [(64, True), (40, False)])
def test_nothing_is_adopted_in_the_middle_of_things(
    chunk: int,
    runs_ahead: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While a chunk is in flight, or within a block."""
    harness = Harness(pace=PaceOptions(max_chunk_tokens=chunk), runs_ahead=runs_ahead)
    harness.add("a", prompt_of(400), 5)
    harness.step()
    sequence = harness.scheduler.running[0]
    assert sequence.num_launched == chunk
    monkeypatch.setattr(harness.pool, "match", lambda *_: pytest.fail("there is nothing to be found"))
    harness.scheduler._adopt(sequence)


def test_a_hit_before_preemption_does_not_count() -> None:
    """It is found again, or not, when the sequence comes back."""
    harness = filled()
    harness.add("b", prompt_of(100), 5)
    harness.scheduler.admit()
    sequence = harness.scheduler.running[0]
    assert sequence.num_found == 96
    harness.scheduler._preempt(sequence)
    harness.run()
    assert harness.end("b").usage.cached_tokens == 0
    assert harness.tokens("a") == harness.tokens("b")


# ── several choices ──────────────────────────────────────────────────────────────────────────────


@AHEAD
@pytest.mark.parametrize("num_prompt", [1, 2, 33, 50, 64, 65])
def test_choices_share_the_prompts_blocks(num_prompt: int, runs_ahead: bool) -> None:  # noqa: FBT001
    """It is computed once; a block that several would write to is copied for all but the last of them."""
    harness = Harness(runs_ahead=runs_ahead)
    harness.add("a", prompt_of(num_prompt), 40, num_choices=4)
    harness.add("beside", prompt_of(50, 3), 40)
    harness.run()
    for choice in range(4):
        assert scripted(prompt_of(num_prompt), 40, choice=choice) == harness.tokens("a", choice)
    harness.check_answers([("beside", prompt_of(50, 3), 40)])
    assert harness.runner.tally.num_chunk_tokens == num_prompt - 1 + 49
    assert harness.runner.tally.num_copies == (3 if (num_prompt - 1) % 32 else 0)
    usage = harness.end("a").usage
    assert usage == Usage(prompt_tokens=num_prompt, completion_tokens=160)
    harness.check_idle()


def test_a_fork_holds_few_blocks_of_its_own() -> None:
    """While all four choices run, three prompts' worth of blocks is saved."""
    harness = Harness()
    harness.add("a", prompt_of(10 * 32 + 5), 60, num_choices=4)
    harness.run_until(lambda: len(harness.deltas("a", 3)) > 3)
    assert harness.pool.num_used == 10 + 4
    assert harness.engine.stats.waste == pytest.approx(
        1 - (10 * 32 + sum(5 + len(harness.tokens("a", choice)) - 1 for choice in range(4))) / (14 * 32)
    )


@pytest.mark.parametrize("facts", [{"max_rows": 2}, {"num_blocks": 5}, {"shares_prefixes": False, "max_rows": 2}])
def test_choices_without_room_wait_for_it(facts: dict[str, Any]) -> None:
    """They come one after the other, each as if alone; the prompt's cached blocks help."""
    harness = Harness(**facts)
    harness.add("a", prompt_of(70), 30, num_choices=4)
    harness.run()
    for choice in range(4):
        assert scripted(prompt_of(70), 30, choice=choice) == harness.tokens("a", choice)
    assert harness.started() == ["a"]
    assert harness.end("a").usage == Usage(prompt_tokens=70, completion_tokens=120)
    harness.check_idle()


def test_choices_end_at_their_own_stops() -> None:
    """The request ends with the last of them."""
    harness = Harness(runs_ahead=True)
    harness.add("a", prompt_of(40), 50, num_choices=3, stop_ids=frozenset(range(0, 256, 7)))
    harness.run()
    lengths = {len(harness.tokens("a", choice)) for choice in range(3)}
    assert len(lengths) > 1
    for choice in range(3):
        tokens = harness.tokens("a", choice)
        assert scripted(prompt_of(40), len(tokens), choice=choice) == tokens
        assert harness.deltas("a", choice)[-1].finish_reason == "stop"
    seqs = [delta.seq for choice in range(3) for delta in harness.deltas("a", choice)]
    assert sorted(seqs) == list(range(len(seqs)))
    harness.end("a")


@AHEAD
@pytest.mark.parametrize("num_prompt", [33, 65, 70])
def test_choices_begin_also_when_another_request_reads_their_prompt(num_prompt: int, runs_ahead: bool) -> None:  # noqa: FBT001
    """The first of them may find the whole prompt, and be complete, within one step."""
    harness, prompt = Harness(runs_ahead=runs_ahead), prompt_of(num_prompt)
    harness.add("reader", prompt, 4)
    harness.add("a", prompt, 1, num_choices=3)
    harness.run(200).check_idle()
    for choice in range(3):
        assert harness.tokens("a", choice) == scripted(prompt, 1, choice=choice)
    harness.end("a")


@AHEAD
@pytest.mark.parametrize("stage", ["launch", "collect"])
def test_choices_begin_also_beside_a_failure(stage: str, runs_ahead: bool) -> None:  # noqa: FBT001
    """When the first one's only row has to run again, alone."""
    harness = Harness(runs_ahead=runs_ahead)
    harness.add("a", prompt_of(40), 1, num_choices=3)
    harness.add("bad", prompt_of(40, 5), 1)
    bad = harness.engine._requests["bad"].sequences[0].id

    def fail(plan: Plan) -> None:
        if any(row.sequence == bad for row in plan.rows):
            raise OSError

    setattr(harness.runner.faults, stage, fail)
    harness.run()
    assert harness.end("bad").fault is not None
    for choice in range(3):
        assert scripted(prompt_of(40), 1, choice=choice) == harness.tokens("a", choice)
    harness.check_idle()
