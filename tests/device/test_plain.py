import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from mlxm.device import plain
from mlxm.device.loader import LoadedModel, load
from mlxm.errors import InternalError
from mlxm.types import Sampling

GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path) -> LoadedModel:
    """The built-in model, loaded."""
    return load(tiny_folder, lambda _done, _total: None)


def tokens(model: LoadedModel, prompt: tuple[int, ...], sampling: Sampling, num_tokens: int) -> list[int]:
    """The tokens of one sequence."""
    steps = plain.generate(model, prompt, sampling, max_tokens=num_tokens)
    return [token_id for token_id in steps if token_id is not None]


def test_greedy_tokens_are_those_of_mlx_lm(tiny: LoadedModel, tiny_folder: Path) -> None:
    """For prompts around the edges of a prefill piece, and one token or many."""
    numbers = random.Random(7)
    lengths = [1, 2, 31, 511, 512, 513, 514, 1025, 1300]
    prompts = [tuple(numbers.randrange(256, 1700) for _ in range(length)) for length in lengths]
    jobs = [(prompt, num_tokens) for prompt in prompts for num_tokens in (1, 24)]
    child = Path(__file__).parent / "children" / "reference.py"
    done = subprocess.run(
        [sys.executable, child], input=json.dumps([str(tiny_folder), jobs]).encode(), capture_output=True, check=True
    )
    expected = json.loads(done.stdout)
    assert expected == [tokens(tiny, prompt, GREEDY, num_tokens) for prompt, num_tokens in jobs]


def test_the_prompt_is_read_in_pieces(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each of them the caller may leave; the last token of the prompt belongs to the first step."""
    monkeypatch.setattr(plain, "PREFILL_TOKENS", 4)
    steps = plain.generate(tiny, tuple(range(300, 310)), GREEDY, max_tokens=2)
    assert [token_id is None for token_id in steps] == [True, True, True, False, False]


def test_a_seed_gives_the_same_tokens_again(tiny: LoadedModel) -> None:
    """Whatever ran in between; other seeds and no seed give others."""
    seeded = Sampling(temperature=1.0, seed=2**63)
    first = tokens(tiny, (300, 301), seeded, 24)
    unseeded = [tokens(tiny, (300, 301), Sampling(temperature=1.0), 24) for _ in range(2)]
    assert first == tokens(tiny, (300, 301), seeded, 24)
    assert first != tokens(tiny, (300, 301), Sampling(temperature=1.0, seed=-1), 24)
    assert unseeded[0] != unseeded[1]


def test_temperature_zero_is_zero(tiny: LoadedModel) -> None:
    """And so is one too small to divide by."""
    likeliest = tokens(tiny, (300, 301), GREEDY, 16)
    assert likeliest == tokens(tiny, (300, 301), Sampling(temperature=1e-300, seed=1), 16)
    assert likeliest != tokens(tiny, (300, 301), Sampling(temperature=1.0, seed=1), 16)


def test_without_a_temperature_the_model_decides(tiny_folder: Path, tiny: LoadedModel, tmp_path: Path) -> None:
    """generation_config.json says it, else it is 1."""
    for path in tiny_folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "generation_config.json").unlink()
    (tmp_path / "generation_config.json").write_text('{"temperature": 0}')
    cool = load(tmp_path, lambda _done, _total: None)
    likeliest = tokens(tiny, (300, 301), GREEDY, 16)
    assert likeliest == tokens(cool, (300, 301), Sampling(seed=1), 16)
    warm = tokens(tiny, (300, 301), Sampling(temperature=1.0, seed=1), 16)
    assert warm == tokens(tiny, (300, 301), Sampling(seed=1), 16)


def test_numbers_that_are_not_finite_end_the_sequence(tiny_folder: Path) -> None:
    """A model that breaks down after its first forward is not sampled from."""
    model = load(tiny_folder, lambda _done, _total: None)
    model.model.model.norm.weight = model.model.model.norm.weight * float("nan")
    with pytest.raises(InternalError, match="not finite"):
        tokens(model, (300, 301), GREEDY, 4)
