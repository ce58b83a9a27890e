"""Too few blocks change when a sequence is computed, never what: it waits, gives way, is computed again, finds less."""

from pathlib import Path

import msgspec
import pytest

from mlxm.device.batch_build import ALONE_KIND, BATCHED_KIND
from mlxm.device.batch_caches import BatchCacheRunner
from mlxm.device.choice import RunnerOptions, open_runner
from mlxm.device.loader import LoadedModel
from mlxm.device.sampler import Sampler
from mlxm.engine.plan import Runner, RunnerFacts
from tests.device.driver import tiny
from tests.device.parity.harness import ODD_CHUNKS, Serving, answer_alone, random_prompts

SHORTSIGHTED = msgspec.structs.replace(ODD_CHUNKS, expected_tokens=1)
"""Everybody is let in who fits at first, so that there is too little room for all of them to grow."""
NUM_BLOCKS = 7
LENGTHS = (20, 63, 30, 64)
NUM_TOKENS = 56
NUM_PASSES = 2
STORES = {
    "qwen3": "paged in place",
    "gemma3_text": "paged in place",
    "gpt_oss": "gathered rows",
    "deepseek_v3": "gathered rows",
    "qwen3_next": BATCHED_KIND,
    "llama4": ALONE_KIND,
}


def open_scarce(loaded: LoadedModel, kind: str) -> Runner:
    """A runner with few blocks; where they hold nothing, they are counted all the same."""
    if kind not in (BATCHED_KIND, ALONE_KIND):
        return open_runner(loaded, RunnerOptions(num_blocks=NUM_BLOCKS, kind=kind))
    facts = RunnerFacts(
        kind=kind, why="", num_blocks=NUM_BLOCKS, max_rows=8, shares_prefixes=False, runs_ahead=False, block_bytes=0
    )
    return BatchCacheRunner(loaded.model, Sampler(None), facts, batches=kind == BATCHED_KIND)


@pytest.mark.parametrize(("name", "kind"), STORES.items())
def test_who_gives_way_goes_on_as_if_nothing_had_been(folder: Path, name: str, kind: str) -> None:
    """With prefixes that are found, or were just evicted, in later passes."""
    loaded = tiny(name, folder)
    prompts = random_prompts(LENGTHS)
    expected = {request_id: answer_alone(loaded.model, prompt, NUM_TOKENS) for request_id, prompt in prompts.items()}
    serving = Serving(loaded, open_scarce(loaded, kind), SHORTSIGHTED)
    for _ in range(NUM_PASSES):
        served = serving.serve(prompts, NUM_TOKENS)
        assert (expected, {}) == (served.tokens, served.faults)
    assert serving.num_preemptions > 0
