"""Too few blocks change when a sequence is computed, never what: it waits, gives way, is computed again, finds less."""

from pathlib import Path

import msgspec
import pytest

from mlxm.device.batch_build import ALONE_KIND, BATCHED_KIND
from tests.device.driver import tiny
from tests.device.parity.harness import ODD_CHUNKS, Serving, answer_alone, open_kind, random_prompts

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


@pytest.mark.parametrize(("name", "kind"), STORES.items())
def test_who_gives_way_goes_on_as_if_nothing_had_been(folder: Path, name: str, kind: str) -> None:
    """With prefixes that are found, or were just evicted, in later passes."""
    loaded = tiny(name, folder)
    prompts = random_prompts(LENGTHS)
    expected = {request_id: answer_alone(loaded.model, prompt, NUM_TOKENS) for request_id, prompt in prompts.items()}
    serving = Serving(loaded, open_kind(loaded, kind, NUM_BLOCKS), SHORTSIGHTED)
    for _ in range(NUM_PASSES):
        served = serving.serve(prompts, NUM_TOKENS)
        assert (expected, {}) == (served.tokens, served.faults)
    assert serving.num_preemptions > 0
