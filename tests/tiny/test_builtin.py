"""The built-in model: the same bytes everywhere, whole or rebuilt, and cheap to make."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from mlxm.tiny import BUILTIN_NAME, BUILTIN_REVISION, build_builtin
from mlxm.tiny.folders import SEAL, is_whole

BUILD = """
import sys
from pathlib import Path
from mlxm.tiny import build_builtin
print(build_builtin(Path(sys.argv[1])))
heavy = {"mlx", "mlx_lm", "transformers", "tokenizers", "torch"} & {name.partition(".")[0] for name in sys.modules}
assert not heavy, heavy
"""

DIGESTS = {"1": "af054a608e1123bd6c05b7c9b6dcede9b8429ed7bcef9ce4986eda1a948062f0"}
"""Of the seal of each revision: when this test fails, BUILTIN_REVISION has to go up."""


def build_command(home: Path) -> list[str]:
    """A process that builds the model, and fails when it loads what it should not need."""
    return [sys.executable, "-c", BUILD, str(home)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the built-in model in it."""
    home = tmp_path_factory.mktemp("home")
    build_builtin(home)
    return home


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_its_bytes_belong_to_its_revision(home: Path) -> None:
    """Nobody's copy differs: the bytes are recorded, so a change of them needs a new revision."""
    seal = (build_builtin(home) / SEAL).read_bytes()
    assert hashlib.sha256(seal).hexdigest() == DIGESTS[BUILTIN_REVISION]


def test_another_process_makes_the_same_bytes(home: Path, tmp_path: Path) -> None:
    """A process with other hash seeds, and without mlx or transformers, writes identical files."""
    environment = {**os.environ, "PYTHONHASHSEED": "4242"}
    subprocess.run(build_command(tmp_path), check=True, env=environment, timeout=60)
    assert contents(build_builtin(tmp_path)) == contents(build_builtin(home))


def test_processes_that_build_at_once_agree(tmp_path: Path) -> None:
    """Four processes on an empty home all get the whole model, and only one folder is left."""
    builders = [subprocess.Popen(build_command(tmp_path), stdout=subprocess.PIPE, text=True) for _ in range(4)]
    answers = {builder.communicate(timeout=60)[0].strip() for builder in builders}
    assert [builder.returncode for builder in builders] == [0, 0, 0, 0]
    assert answers == {str(build_builtin(tmp_path))}
    assert [path.name for path in (tmp_path / "models").iterdir() if path.is_dir()] == [f"tiny-{BUILTIN_REVISION}"]


def test_it_is_not_made_twice(tmp_path: Path) -> None:
    """A whole model is taken as it is."""
    weights = build_builtin(tmp_path) / "model.safetensors"
    before = weights.stat().st_ino
    build_builtin(tmp_path)
    assert weights.stat().st_ino == before


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", SEAL])
def test_a_damaged_model_is_made_anew(home: Path, tmp_path: Path, name: str) -> None:
    """A file cut short, or gone, does not survive the next use."""
    folder = build_builtin(tmp_path)
    (folder / name).write_bytes((folder / name).read_bytes()[:-2])
    assert not is_whole(folder)
    assert contents(build_builtin(tmp_path)) == contents(build_builtin(home))
    (folder / name).unlink()
    assert contents(build_builtin(tmp_path)) == contents(build_builtin(home))


def test_it_is_a_few_megabytes_and_says_what_it_is(home: Path) -> None:
    """It costs little room, and its card warns that it speaks gibberish."""
    folder = build_builtin(home)
    assert 1e6 < sum(path.stat().st_size for path in folder.iterdir()) < 6e6
    card = (folder / "README.md").read_text()
    assert BUILTIN_NAME in card
    assert "gibberish" in card


def test_its_configuration_is_a_small_llama(home: Path) -> None:
    """Grouped heads, a shared embedding and an 8k context; one end in the config, both in the generation config."""
    folder = build_builtin(home)
    config = json.loads((folder / "config.json").read_text())
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert config["model_type"] == "llama"
    assert config["num_key_value_heads"] < config["num_attention_heads"]
    assert config["tie_word_embeddings"] is True
    assert config["max_position_embeddings"] == 8192
    assert [config["eos_token_id"]] == ends[:1]
    assert len(ends) == 2


def test_making_it_takes_no_noticeable_time(tmp_path: Path) -> None:
    """A process that starts, imports NumPy and builds the model needs well under a second of processor time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(build_command(tmp_path), check=True, timeout=60, env={**os.environ, "COVERAGE_PROCESS_CONFIG": ""})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime) < 1.0
