"""Every architecture, served in a batch by the store that the product chooses for it, answers what it answers alone."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import mlx.core as mx
import pytest

from mlxm.device.loader import load
from mlxm.testing import ARCHITECTURES, build_models
from tests.device.parity.harness import LENGTHS, Serving, answer_alone, random_prompts


@pytest.fixture(scope="module", autouse=True)
def plain_kernels() -> Iterator[None]:
    """Without fused kernels, each of which takes a compiler a second."""
    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A tiny model of each architecture."""
    return build_models(ARCHITECTURES, tmp_path_factory.mktemp("architectures"))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_batch_answers_what_mlx_lm_answers_alone(folders: Mapping[str, Path], name: str) -> None:
    """For prompts around the edges of blocks, read by odd pieces, that join and leave; then again, from the cache."""
    loaded = load(folders[name], lambda _done, _total: None)
    runner = open_runner(loaded)
    prompts = random_prompts(LENGTHS)
    expected = {request_id: answer_alone(loaded.model, prompt) for request_id, prompt in prompts.items()}
    serving = Serving(loaded, runner)
    first = serving.serve(prompts)
    assert (expected, {}) == (first.tokens, first.faults)
    if runner.facts.shares_prefixes:
        again = serving.serve(prompts)
        assert (expected, {}) == (again.tokens, again.faults)
        assert [again.cached_tokens[length] for length in ("32", "33", "64", "97")] == [0, 32, 32, 96]


def open_runner(loaded):
    from mlxm.device.batch_build import build_batch_cache_runner
    return build_batch_cache_runner(loaded.model, lambda l, r: mx.argmax(l, axis=-1), vocab_size=loaded.vocab_size, memory_bytes=1<<30, max_rows=8, context_length=512, runs_ahead=False)
