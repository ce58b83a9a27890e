"""Tiny models of every architecture: built, cached, read back by mlx-lm, and alive."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

import mlxm.testing
from mlxm.errors import InternalError, InvalidRequest, TimedOut
from mlxm.testing import ARCHITECTURES, Quantise, build_models, family_of, models
from mlxm.testing.models import _make_weights
from mlxm.tiny import build_builtin
from mlxm.tiny.families import FAMILIES
from mlxm.tiny.folders import is_whole
from mlxm.tiny.jobs import REFUSED, Job
from mlxm.tiny.tokenizer import FIRST_SPECIAL_ID, eos_ids

LLAMA = {"llama": ARCHITECTURES["llama"]}
QUANTISED = "llama, 4 bits"
BUILTIN = "built in"
ALL = [*ARCHITECTURES, QUANTISED, BUILTIN]

RECURRENT_CACHES = {
    "mamba2": ["ArraysCache"] * 3,
    "jamba": ["ArraysCache", "KVCache"] * 2,
    "qwen3_next": [*["ArraysCache"] * 3, "KVCache"],
    "llama_sliding": ["RotatingKVCache", "KVCache"] * 2,
    "gpt_oss": ["RotatingKVCache", "KVCache"] * 2,
    "llama4": [*["ChunkedKVCache"] * 3, "KVCache"],
    "deepseek_v32": ["CacheList"] * 3,
}


WRONG_JOBS = {
    "incomplete": Job(config={"model_type": "llama"}, folder=""),
    "nine bits": Job(config=dict(ARCHITECTURES["llama"]), folder="", quantise=Quantise(bits=9)),
    "rearranged": Job(
        config={
            **ARCHITECTURES["llama"],
            "model_type": "baichuan_m1",
            "sliding_window": 16,
            "sliding_window_layers": [0],
            "conv_window": 2,
        },
        folder="",
    ),
}

TRY_ALL = """
import contextlib, io, json, sys
from mlxm.device.random_weights import main
found = {}
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as said:
        found[" ".join(arguments)] = main(arguments), said.getvalue()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that keeps the models of this module."""
    return tmp_path_factory.mktemp("shelf")


@pytest.fixture(scope="module")
def folders(shelf: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every model under test by name."""
    folders = build_models(ARCHITECTURES, shelf)
    folders[QUANTISED] = build_models(LLAMA, shelf, quantise=Quantise(bits=4, group_size=32))["llama"]
    folders[BUILTIN] = build_builtin(tmp_path_factory.mktemp("home"))
    return folders


@pytest.fixture(scope="module")
def seen(folders: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """What mlx-lm makes of every model, found out in one process."""
    pairs = [f"{name}={folder}" for name, folder in folders.items()]
    command = [sys.executable, str(Path(__file__).with_name("greedy.py")), *pairs]
    # Where a C++ compiler is found, mlx compiles a kernel for each new fusion, which takes longer than all the tokens.
    environment = {**os.environ, "MLX_DISABLE_COMPILE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found


def config_of(folder: Path) -> dict[str, Any]:
    """A model's config.json."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


@pytest.mark.parametrize("name", ALL)
def test_greedy_answers_are_finite_and_varied(seen: dict[str, dict[str, Any]], name: str) -> None:
    """Sixteen tokens come out, several of them different, none of them a marker that would end the answer."""
    assert seen[name]["finite"]
    for tokens in seen[name]["tokens"]:
        assert len(tokens) == 16
        assert len(set(tokens)) >= 4
        assert max(tokens) < FIRST_SPECIAL_ID


@pytest.mark.parametrize("name", ALL)
def test_answers_depend_on_the_whole_prompt(seen: dict[str, dict[str, Any]], name: str) -> None:
    """The first of some twenty words changes the logits after the last one, and the answer."""
    assert seen[name]["first_token_effect"] > 1e-3
    assert seen[name]["tokens"][0] != seen[name]["tokens"][1]


@pytest.mark.parametrize("name", ALL)
def test_tokenizer_and_template_are_read_as_written(
    seen: dict[str, dict[str, Any]], folders: dict[str, Path], name: str
) -> None:
    """No loader puts a tokenizer of its own in place of ours: same ids, same ends, same prompt."""
    family = FAMILIES[family_of(config_of(folders[name])["model_type"])]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    prompt = environment.from_string(family.chat_template).render(
        messages=[{"role": "user", "content": "What is the weather like today?"}],
        add_generation_prompt=True,
        bos_token=family.bos,
        eos_token=family.eos[0],
    )
    assert seen[name]["same_ids"]
    assert seen[name]["eos_ids"] == sorted(eos_ids(family))
    assert seen[name]["prompt"] == prompt


@pytest.mark.parametrize(("name", "caches"), RECURRENT_CACHES.items())
def test_architectures_keep_what_makes_them_different(
    seen: dict[str, dict[str, Any]], name: str, caches: list[str]
) -> None:
    """Windows, chunks, latent and recurrent states show in the caches that mlx-lm makes for them."""
    assert seen[name]["caches"] == caches


def test_quantised_weights_are_packed(folders: dict[str, Path]) -> None:
    """The 4-bit model names its quantisation and is far smaller than the one it was made from."""
    assert config_of(folders[QUANTISED])["quantization"] == {"bits": 4, "group_size": 32, "mode": "affine"}
    packed, full = ((folders[name] / "model.safetensors").stat().st_size for name in (QUANTISED, "llama"))
    assert packed < full / 4


def test_a_second_build_is_taken_from_the_shelf(folders: dict[str, Path], shelf: Path) -> None:
    """The same content is not made again, whatever it is called; another seed is other content."""
    before = (folders["llama"] / "model.safetensors").stat().st_ino
    assert build_models(LLAMA, shelf)["llama"] == folders["llama"]
    assert (folders["llama"] / "model.safetensors").stat().st_ino == before
    other = build_models(LLAMA, shelf, seed=1)["llama"]
    assert other != folders["llama"]
    assert (other / "model.safetensors").read_bytes() != (folders["llama"] / "model.safetensors").read_bytes()


def test_a_damaged_model_is_made_anew_with_the_same_bytes(folders: dict[str, Path], shelf: Path) -> None:
    """Weights cut short are noticed, and the new ones are what the old ones were."""
    weights = folders["llama"] / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4])
    build_models(LLAMA, shelf)
    assert weights.read_bytes() == whole


def test_processes_share_a_shelf(tmp_path: Path) -> None:
    """Two processes that want the same models at once both get them, whole and built once."""
    program = (
        "import sys; from pathlib import Path; from mlxm.testing import ARCHITECTURES, build_models;"
        "print(*build_models({n: ARCHITECTURES[n] for n in ('llama', 'qwen3')}, Path(sys.argv[1])).values())"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    builders = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [builder.communicate(timeout=120)[0] for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0]
    assert answers[0] == answers[1]
    assert all(is_whole(Path(folder)) for folder in answers[0].split())
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 2


def test_a_name_may_be_anything(tmp_path: Path) -> None:
    """Names of repositories with slashes become one folder inside the shelf."""
    folder = build_models({"mlx-community/Llama: tiny": ARCHITECTURES["llama"]}, tmp_path)["mlx-community/Llama: tiny"]
    assert folder.parent == tmp_path
    assert is_whole(folder)


def test_a_configuration_that_makes_no_model_is_refused(tmp_path: Path) -> None:
    """The message says what is wrong, and nothing is left behind."""
    with pytest.raises(InvalidRequest, match="no_such_model"):
        build_models({"wrong": {"model_type": "no_such_model"}}, tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_a_configuration_without_a_type_is_refused(tmp_path: Path) -> None:
    """Without model_type nobody knows what to make."""
    with pytest.raises(InvalidRequest, match="model_type"):
        build_models({"wrong": {"hidden_size": 64}}, tmp_path)


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """Status and stderr of the program that makes weights for each wrong argument, all from one process."""
    folder = tmp_path_factory.mktemp("refusals")
    for name, job in WRONG_JOBS.items():
        (folder / f"{name}.json").write_bytes(msgspec.json.encode([msgspec.structs.replace(job, folder=str(folder))]))
    (folder / "broken.json").write_text('[{"config": 3}]')
    arguments = [
        [],
        ["missing.json"],
        ["broken.json"],
        ["a.json", "b.json"],
        *([f"{name}.json"] for name in WRONG_JOBS),
    ]
    command = [sys.executable, "-c", TRY_ALL, json.dumps(arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=True)
    found: dict[str, tuple[int, str]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("arguments", ["", "missing.json", "broken.json", "a.json b.json"])
def test_what_is_no_job_file_is_refused(refusals: dict[str, tuple[int, str]], arguments: str) -> None:
    """The program that makes weights says in one line what it cannot read."""
    status, message = refusals[arguments]
    assert status == REFUSED
    assert "job file" in message
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("job", "reason"),
    [
        ("incomplete", "hidden_size"),
        ("nine bits", "does not quantise"),
        ("rearranged", "reads other weights than were written.*lm_head"),
    ],
)
def test_a_job_that_cannot_be_done_is_refused(refusals: dict[str, tuple[int, str]], job: str, reason: str) -> None:
    """Wrong sizes, a quantisation mlx does not know, and weights that a loader changes."""
    status, message = refusals[f"{job}.json"]
    assert status == REFUSED
    assert re.search(reason, message)


def test_a_builder_that_breaks_is_reported(tmp_path: Path) -> None:
    """A crash in the process that makes weights is told with the end of what it wrote."""
    job = Job(config=dict(ARCHITECTURES["llama"]), folder=str(tmp_path / "missing"))
    with pytest.raises(InternalError, match="No such file"):
        _make_weights([job], tmp_path)


def test_a_builder_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a limit to the time that making weights may take."""
    monkeypatch.setattr(models, "_LIMIT_S", 0.01)
    with pytest.raises(TimedOut, match="1 models"):
        _make_weights([Job(config=dict(ARCHITECTURES["llama"]), folder=str(tmp_path))], tmp_path)


def test_every_configuration_is_plain_data() -> None:
    """The table goes through JSON unchanged, as a config.json has to."""
    assert msgspec.json.decode(msgspec.json.encode(ARCHITECTURES)) == ARCHITECTURES


def test_public_names_are_all_there() -> None:
    """Each name in __all__ can be had, and no other is invented."""
    for name in mlxm.testing.__all__:
        assert getattr(mlxm.testing, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = mlxm.testing.no_such_name


def test_importing_it_loads_nothing_heavy() -> None:
    """The package and the names that need no model come without numpy, mlx or transformers."""
    program = (
        "import sys; from mlxm.testing import ARCHITECTURES, Quantise, build_models, family_of;"
        "assert not {'numpy', 'mlx', 'mlx_lm', 'transformers', 'tokenizers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
