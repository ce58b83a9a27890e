import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from tests.cli.model_cache import Cabinet, check_golden, text_files, widest

NAMES = ["acme/half-here", "acme/torch-only", "mlx-community/Qwen3-4B-4bit", "mlx-community/Qwen3-VL-8B-8bit"]


def names(cabinet: Cabinet, *args: str) -> list[str]:
    """The models that `ls` lists."""
    return cabinet.run("ls", "-q", *args).out.split()


def test_piped_list_has_every_column_whole(full_cabinet: Cabinet) -> None:
    """Columns are aligned and nothing is cut; how many there are, and what they take, is no part of the result."""
    ran = full_cabinet.run("ls")

    assert ran.code == 0
    check_golden("ls.piped.txt", ran.out)
    assert ran.err == "4 models · 11.4 GB in ~/.cache/huggingface/hub\n"


@pytest.mark.parametrize("columns", [80, 120])
def test_list_on_a_terminal_fits_its_width(full_cabinet: Cabinet, columns: int) -> None:
    """Where there is no room for all columns, those that matter least are left out, and no name is broken."""
    screen = full_cabinet.show("ls", columns=columns)

    check_golden(f"ls.{columns}.txt", screen)
    assert widest(screen.splitlines()) <= columns


def test_list_as_json_has_all_that_is_known(full_cabinet: Cabinet) -> None:
    """One array of objects, each with the characteristics and what the model would take."""
    ran = full_cabinet.run("ls", "--json")

    assert ran.err == ""
    assert [each["id"] for each in json.loads(ran.out)] == NAMES
    check_golden("ls.json", ran.out.replace(str(full_cabinet.user), "~"))


def test_list_is_the_same_command_by_another_name(full_cabinet: Cabinet) -> None:
    """`list` is what other tools call it."""
    assert full_cabinet.run("list") == full_cabinet.run("ls")


def test_names_alone_are_for_other_commands(full_cabinet: Cabinet) -> None:
    """One id per line, and nothing beside them."""
    ran = full_cabinet.run("ls", "-q")

    assert ran.out.split("\n") == [*NAMES, ""]
    assert ran.err == ""


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (["size>4GB"], [NAMES[3]]),
        (["size<4GB", "state=on disk"], [NAMES[2]]),
        (["fits=yes", "task=chat", "size>=2GB"], [NAMES[2]]),
        (["fits=no"], [NAMES[3]]),
        (["quant=8bit"], [NAMES[3]]),
        (["quant!=8bit"], NAMES[:3]),
        (["ctx>=256k"], [NAMES[3]]),
        (["ctx<256k", "used<1h"], [NAMES[2]]),
        (["used>1d", "state!=unsupported"], [NAMES[3]]),
        (["state=incomplete"], [NAMES[0]]),
        (["model=ACME/half-here"], [NAMES[0]]),
        (["source=lmstudio"], []),
        (["tools=yes", "task=chat", "disk > 1MB"], [NAMES[2]]),
        (["params>100B"], []),
    ],
)
def test_filters_choose_by_what_the_columns_say(full_cabinet: Cabinet, filters: list[str], expected: list[str]) -> None:
    """All of them at once; what a model does not say fits no comparison of numbers."""
    assert names(full_cabinet, *(part for each in filters for part in ("--filter", each))) == expected


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        ("model:desc", [3, 2, 1, 0]),
        ("size", [0, 1, 2, 3]),
        ("size:desc", [3, 2, 1, 0]),
        ("used:asc", [2, 3, 1, 0]),
        ("used:desc", [1, 3, 2, 0]),
    ],
)
def test_sorting_is_by_a_field_and_a_direction(full_cabinet: Cabinet, sort: str, expected: list[int]) -> None:
    """What a model does not say puts it last either way."""
    assert names(full_cabinet, "--sort", sort) == [NAMES[place] for place in expected]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--filter", "size"], "--filter 'size' is not understood."),
        (["--filter", "size>big"], "'big' is no size."),
        (["--filter", "ctx>7x"], "'7x' is no ctx."),
        (["--filter", "ctx>7b"], "'7b' is no ctx."),
        (["--filter", "used>7"], "'7' is no used."),
        (["--filter", "colour=red"], "There is no field 'colour'."),
        (["--filter", "task>chat"], "task is text: compare it with = or !=."),
        (["--sort", "colour"], "There is no field 'colour'."),
        (["--sort", "size:up"], "--sort size:up ends in neither :asc nor :desc."),
    ],
)
def test_filter_without_sense_is_refused(cabinet: Cabinet, args: list[str], message: str) -> None:
    """As a mistake in the command line, with the way to mend it."""
    ran = cabinet.run("ls", *args)

    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"error: {message}\n")


def test_built_in_model_stands_alone(cabinet: Cabinet) -> None:
    """Who has no model sees the one that is always there, and how to find others."""
    ran = cabinet.run("ls")

    assert ran.out.splitlines()[1].startswith("mlxm/tiny ")
    assert ran.err == (
        "Only the built-in model is here. Find others with: mlxm search qwen\n"
        "mlxm/tiny speaks gibberish: its weights are random, for trying things out.\n"
    )


def test_what_cannot_be_looked_into_is_told(full_cabinet: Cabinet) -> None:
    """The rest is listed all the same."""
    (full_cabinet.hub_cache / "models--acme--away").symlink_to("/")
    ran = full_cabinet.run("ls", "-q")

    assert ran.out.split() == NAMES
    assert ran.err.startswith("warning: ")
    assert "leads out of" in ran.err


def test_models_of_all_places_are_listed(full_cabinet: Cabinet) -> None:
    """LM Studio's folder and imported ones count, and the footer names every place."""
    folder = full_cabinet.user / ".lmstudio" / "models" / "lm" / "studio-4bit"
    folder.mkdir(parents=True)
    for name, content in text_files().items():
        (folder / name).write_bytes(content)
    ran = full_cabinet.run("ls")

    assert "lm/studio-4bit" in ran.out
    assert ran.err.endswith(" in ~/.cache/huggingface/hub, ~/.lmstudio/models\n")


@pytest.mark.parametrize(("command", "args"), [("ls", []), ("show", ["mlxm/tiny"])])
def test_quick_commands_load_no_heavy_library(
    command: str, args: list[str], run_mlxm: Callable[..., subprocess.CompletedProcess[Any]]
) -> None:
    """Looking at what is there must not wait for what runs or fetches it."""
    done = run_mlxm(command, *args, PYTHONPROFILEIMPORTTIME="1")
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}

    assert done.returncode == 0
    assert "mlxm.catalog.local" in loaded
    heavy = ("mlx", "mlx_lm", "mlx_vlm", "transformers", "sqlite_utils", "litestar", "textual", "pydantic", "httpx")
    assert loaded.isdisjoint(heavy)


def test_looking_at_a_model_is_no_use_of_it(full_cabinet: Cabinet) -> None:
    """Else nobody could tell which models are not needed any more."""
    (weights,) = full_cabinet.hub_cache.glob("*VL*/snapshots/*/model.safetensors")
    before = weights.stat().st_atime
    full_cabinet.run("ls")
    full_cabinet.run("show", NAMES[3])

    assert weights.stat().st_atime == before
