"""Every architecture, served in a batch by each store that is right for it, answers what it answers alone."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest

from mlxm.device.choice import RunnerOptions, open_runner
from mlxm.device.loader import LoadedModel
from mlxm.engine.plan import Runner
from mlxm.testing import ARCHITECTURES
from tests.device.driver import tiny
from tests.device.parity.harness import LENGTHS, Prompts, Serving, answer_alone, random_prompts

DOCS = Path(__file__).parents[3] / "docs"
PAGE = DOCS / "architectures.md"
POOL = 20
"""Blocks, scratch included."""


@pytest.fixture(scope="module")
def page_writer() -> ModuleType:
    """The script that writes the page, which knows what the product asks when it loads a model."""
    spec = importlib.util.spec_from_file_location("generate_architectures", DOCS / "generate_architectures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rows() -> Mapping[str, str]:
    """The page's row of each architecture."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    return {line.split()[1]: line for line in lines if line.startswith("| ")}


def assert_serves(runner: Runner, loaded: LoadedModel, prompts: Prompts, expected: Mapping[str, list[int]]) -> None:
    """Serve the prompts, and again when what they begin with is known, if the runner can use that."""
    serving = Serving(loaded, runner)
    first = serving.serve(prompts)
    assert (expected, {}) == (first.tokens, first.faults)
    if runner.facts.shares_prefixes:
        again = serving.serve(prompts)
        assert (expected, {}) == (again.tokens, again.faults)
        assert again.cached_tokens["33"] == 32


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_batch_answers_what_mlx_lm_answers_alone(
    folder: Path, page_writer: ModuleType, rows: Mapping[str, str], name: str
) -> None:
    """For prompts around the edges of blocks, read by odd pieces, that join and leave; and the page says how."""
    loaded = tiny(name, folder)
    support = page_writer.find_support(loaded)
    assert rows[name] == page_writer.write_row(name, support), "run: python docs/generate_architectures.py"
    prompts = random_prompts(LENGTHS)
    expected = {request_id: answer_alone(loaded.model, prompt) for request_id, prompt in prompts.items()}
    options = [RunnerOptions(num_blocks=POOL, kind=kind) for kind in support.kinds] or [
        RunnerOptions(memory_bytes=1 << 28)
    ]
    for chosen in options:
        assert_serves(open_runner(loaded, chosen), loaded, prompts, expected)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_the_product_chooses_a_store_that_is_right(folder: Path, page_writer: ModuleType, name: str) -> None:
    """One of those that were all tried."""
    loaded = tiny(name, folder)
    facts = open_runner(loaded, RunnerOptions()).facts
    assert facts.kind in page_writer.find_support(loaded).kinds
    assert facts.why


def test_the_page_has_every_architecture_and_no_other(rows: Mapping[str, str]) -> None:
    """Below the table's head."""
    assert list(ARCHITECTURES) == [name for name in rows if name != "Architecture"]
