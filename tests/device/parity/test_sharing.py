"""Blocks that several sequences look at: an earlier one's prefix, choices of one request, a long common beginning."""

from pathlib import Path

import pytest

from mlxm.device import layout
from mlxm.device.batch_build import BATCHED_KIND
from mlxm.device.paged import Batch
from mlxm.types import Sampling
from tests.device.driver import tiny
from tests.device.parity.faults import FailingRunner
from tests.device.parity.harness import (
    NUM_TOKENS,
    Served,
    Serving,
    answer_alone,
    note,
    open_kind,
    order_of,
    random_prompts,
)

KINDS = pytest.mark.parametrize("kind", ["paged in place", "gathered rows"])
SAMPLED = Sampling(temperature=1.0, seed=11)


def serve_together(serving: Serving, *orders: dict) -> Served:
    """Serve requests that come at once."""
    served = Served()
    for order in orders:
        serving.engine.add(order_of(**order))
    while serving.engine.has_work:
        for event in serving.engine.step():
            note(served, event)
    serving.check_idle()
    return served


@KINDS
@pytest.mark.parametrize("name", ["llama", "llama_sliding", "gemma3_text", "gpt_oss", "cohere2"])
def test_the_next_turn_of_a_conversation_starts_where_the_last_one_ended(folder: Path, name: str, kind: str) -> None:
    """Also where layers look at a window of sixteen tokens; nobody computes what was answered again."""
    loaded = tiny(name, folder)
    serving = Serving(loaded, open_kind(loaded, kind, 24))
    turn = random_prompts((70,))["70"]
    for num_cached in (0, 64, 96):
        expected = answer_alone(loaded.model, turn)
        served = serving.serve({"turn": turn})
        assert (served.tokens["turn"], served.cached_tokens["turn"]) == (expected, num_cached)
        turn = [*turn, *expected, *random_prompts((12,))["12"]]


@KINDS
@pytest.mark.parametrize("name", ["gemma3_text", "gpt_oss", "llama_sliding"])
@pytest.mark.parametrize("num_shared", [32, 64])
def test_who_begins_alike_and_goes_on_differently_shares_the_beginning(
    folder: Path, name: str, kind: str, num_shared: int
) -> None:
    """As far as whole blocks go, beside the one who has filled them."""
    loaded = tiny(name, folder)
    first, other = random_prompts((90, 75), seed=4).values()
    fork = [*first[:num_shared], *other]
    served = Serving(loaded, open_kind(loaded, kind, 24)).serve({"first": first, "fork": fork})
    assert served.tokens == {"first": answer_alone(loaded.model, first), "fork": answer_alone(loaded.model, fork)}
    assert served.cached_tokens == {"first": 0, "fork": num_shared}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("llama", "paged in place"),
        ("gpt_oss", "paged in place"),
        ("gemma2", "gathered rows, masks per group"),
        ("qwen3_next", BATCHED_KIND),
    ],
)
def test_choices_of_a_request_go_their_own_ways(folder: Path, name: str, kind: str) -> None:
    """They share the prompt's blocks where there are such, and write to copies of the last one."""
    loaded = tiny(name, folder)
    runner = FailingRunner(open_kind(loaded, kind, 40), {})
    serving = Serving(loaded, runner)
    prompt = random_prompts((50,))["50"]
    order = {"request_id": "a", "prompt": prompt, "num_tokens": NUM_TOKENS}
    alike = serve_together(serving, order | {"num_choices": 3})
    expected = answer_alone(loaded.model, prompt)
    assert alike.tokens == {"a": expected, "a.1": expected, "a.2": expected}
    assert runner.num_copies == (2 if runner.facts.shares_prefixes else 0)
    single = serve_together(serving, order | {"sampling": SAMPLED})
    several = serve_together(serving, order | {"sampling": SAMPLED, "num_choices": 3})
    assert several.tokens["a"] == single.tokens["a"]
    assert len({tuple(tokens) for tokens in several.tokens.values()}) == 3


def test_a_seed_decides_whatever_the_company_the_chunks_and_the_store(folder: Path) -> None:
    """Alone and in whole, or among others and in pieces."""
    loaded = tiny("llama", folder)
    prompts = random_prompts((70, 45, 33))
    answers = []
    for kind in ("paged in place", "gathered rows", BATCHED_KIND):
        orders = [
            {"request_id": name, "prompt": prompt, "num_tokens": NUM_TOKENS, "sampling": SAMPLED}
            for name, prompt in prompts.items()
        ]
        serving = Serving(loaded, open_kind(loaded, kind, 40))
        answers += [serve_together(serving, *orders).tokens, serve_together(serving, *orders[::-1]).tokens]
        answers.append(
            {order["request_id"]: serve_together(serving, order).tokens[order["request_id"]] for order in orders}
        )
    assert all(answer == answers[0] for answer in answers)
    assert answers[0]["70"] != answer_alone(loaded.model, prompts["70"])


@pytest.mark.parametrize("name", ["llama", "gpt_oss"])
def test_a_beginning_that_is_read_once_gives_the_same_tokens(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when each row reads it for itself, and as mlx-lm has them."""
    loaded = tiny(name, folder)
    shared = random_prompts((32 * layout.MIN_SHARED_BLOCKS + 5,))
    prompts = [[*next(iter(shared.values())), *ending] for ending in random_prompts((1, 2, 9, 14, 30)).values()]
    orders = [{"request_id": str(place), "prompt": prompt, "num_tokens": 8} for place, prompt in enumerate(prompts)]
    expected = {str(place): answer_alone(loaded.model, prompt, 8) for place, prompt in enumerate(prompts)}
    sizes: list[int] = []
    find_runs = Batch._find_runs

    def noting(batch: Batch) -> list[layout.Run]:
        runs = find_runs(batch)
        sizes.extend(len(run.rows) for run in runs)
        return runs

    monkeypatch.setattr(Batch, "_find_runs", noting)
    together = serve_together(Serving(loaded, open_kind(loaded, "paged in place", 40)), *orders)
    assert max(sizes) >= layout.MIN_SHARERS
    sizes.clear()
    monkeypatch.setattr(layout, "MIN_SHARERS", 100)
    apart = serve_together(Serving(loaded, open_kind(loaded, "paged in place", 40)), *orders)
    assert sizes == []
    assert together.tokens == apart.tokens == expected
