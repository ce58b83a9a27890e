import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mlxm.catalog.characteristics import Capability, Characteristics, Quantisation
from mlxm.catalog.local import LocalModel
from mlxm.catalog.memory import MemoryEstimate
from mlxm.cli.facts import describe_model
from mlxm.cli.installed import Installed, show_quantisation
from mlxm.cli.main import main
from mlxm.downloads.lock import hold_alone
from tests.cli.model_cache import HERE, TOOL_TEMPLATE, Cabinet, Terminal, check_golden, text_files, widest

RunMlxm = Callable[..., subprocess.CompletedProcess[str]]

NAME = "mlx-community/Qwen3-4B-4bit"
HERE_PATH = Path("/nowhere")


def test_facts_in_a_pipe_are_whole_lines(full_cabinet: Cabinet) -> None:
    """What it is, how that is known, and what it takes."""
    ran = full_cabinet.run("show", NAME)

    assert (ran.code, ran.err) == (0, "")
    check_golden("show.piped.txt", ran.out)


@pytest.mark.parametrize("columns", [80, 120])
def test_facts_on_a_terminal_are_wrapped_beside_their_names(full_cabinet: Cabinet, columns: int) -> None:
    """Only what has no blank, such as a path, may be wider than the terminal."""
    screen = full_cabinet.show("show", NAME, columns=columns)

    check_golden(f"show.{columns}.txt", screen)
    assert widest(line for line in screen.splitlines() if "snapshots" not in line) <= columns


def test_json_has_what_the_list_has_and_the_longest_context(full_cabinet: Cabinet) -> None:
    """The same fields, for one model."""
    shown = json.loads(full_cabinet.run("show", NAME, "--json").out)
    (listed,) = json.loads(full_cabinet.run("ls", "--json", "--filter", f"model={NAME}").out)

    assert 30_000 < shown.pop("largest_context") < 40960
    assert shown.pop("last_used") is not None
    assert shown == {key: value for key, value in listed.items() if key != "last_used"}


@pytest.mark.parametrize(
    ("asked", "context", "fits"),
    [("4096", 4096, "yes"), ("4k", 4096, "yes"), ("max", 40960, "no"), ("100k", 102400, "no")],
)
def test_memory_is_told_for_the_context_asked_for(full_cabinet: Cabinet, asked: str, context: int, fits: str) -> None:
    """As a number, with a unit, or all that the model can see."""
    shown = json.loads(full_cabinet.run("show", NAME, "--memory", asked, "--json").out)

    assert (shown["memory"]["context"], shown["fits"]) == (context, fits)
    assert shown["memory"]["kv_bytes"] == context * shown["characteristics"]["kv_bytes_per_token"]


@pytest.mark.parametrize("asked", ["long", "7b", "-1"])
def test_context_that_is_none_is_refused(full_cabinet: Cabinet, asked: str) -> None:
    """With an example of one."""
    ran = full_cabinet.run("show", NAME, "--memory", asked)

    assert ran.code == 2
    assert ran.err.endswith("hint: Write 8192, 32k or max.\n")


def test_template_is_printed_as_it_is(full_cabinet: Cabinet) -> None:
    """So that it can be kept in a file."""
    assert full_cabinet.run("show", NAME, "--template").out == f"{TOOL_TEMPLATE}\n"
    assert json.loads(full_cabinet.run("show", NAME, "--template", "--json").out) == {"template": TOOL_TEMPLATE}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"chat_template.jinja": b"{{ a }}\n"}, "{{ a }}"),
        ({"chat_template.json": b'{"chat_template": "{{ b }}"}'}, "{{ b }}"),
        ({"tokenizer_config.json": b'{"chat_template": [{"name": "x", "template": "{{ x }}"}]}'}, "{{ x }}"),
        (
            {
                "tokenizer_config.json": b'{"chat_template": [{"name": "x", "template": "X"}, '
                b'{"name": "default", "template": "{{ d }}"}]}'
            },
            "{{ d }}",
        ),
    ],
)
def test_template_is_found_wherever_models_keep_it(cabinet: Cabinet, files: dict[str, bytes], expected: str) -> None:
    """In a file of its own, or in the tokenizer's settings, alone or among others."""
    cabinet.add("a/b", {"config.json": b"{}", **files})

    assert cabinet.run("show", "a/b", "--template").out == f"{expected}\n"


@pytest.mark.parametrize("settings", [b"{}", b'{"chat_template": 7}', b'{"chat_template": []}'])
def test_model_without_template_says_so(cabinet: Cabinet, settings: bytes) -> None:
    """It ends with 4."""
    cabinet.add("a/b", {"config.json": b"{}", "tokenizer_config.json": settings})
    ran = cabinet.run("show", "a/b", "--template")

    assert (ran.code, ran.err.splitlines()[0]) == (4, "error: a/b has no chat template.")


def test_card_is_told_without_its_table_of_facts(full_cabinet: Cabinet) -> None:
    """As Markdown in a pipe, laid out on a terminal."""
    assert full_cabinet.run("show", NAME, "--card").out == "# A model\n\nIt *talks*.\n"
    assert json.loads(full_cabinet.run("show", NAME, "--card", "--json").out)["card"].startswith("# A model")
    screen = full_cabinet.show("show", NAME, "--card", columns=80)
    assert "It talks." in screen
    assert "license" not in screen


def test_card_without_facts_is_told_whole(cabinet: Cabinet) -> None:
    """A line of hyphens later on is part of it; a model without a card says so."""
    cabinet.add("a/b", {"config.json": b"{}", "README.md": b"Hello\n---\nthere\n"})
    cabinet.add("a/c", {"config.json": b"{}"})

    assert cabinet.run("show", "a/b", "--card").out == "Hello\n---\nthere\n"
    assert cabinet.run("show", "a/c", "--card").code == 4


def test_files_are_listed_with_the_sizes_of_their_contents(full_cabinet: Cabinet) -> None:
    """The links of the cache count as what they lead to."""
    ran = full_cabinet.run("show", NAME, "--files")
    listed = json.loads(full_cabinet.run("show", NAME, "--files", "--json").out)

    assert ran.out.splitlines()[0].split() == ["FILE", "SIZE"]
    assert "model.safetensors      2.3 GB" in ran.out
    assert [each["path"] for each in listed] == sorted([*text_files(), "model.safetensors"])
    assert sum(each["size_bytes"] for each in listed) > 2_259_000_000


def test_only_one_part_at_a_time(full_cabinet: Cabinet) -> None:
    """Two texts on one stream could not be told apart."""
    assert full_cabinet.run("show", NAME, "--card", "--files").code == 2


def test_unknown_model_ends_with_4_and_near_names(full_cabinet: Cabinet) -> None:
    """With the way to find it elsewhere."""
    ran = full_cabinet.run("show", "Qwen3-4B")
    far = full_cabinet.run("show", "zzz/unheard-of")

    assert (ran.code, ran.out) == (4, "")
    assert ran.err == (
        "error: The model 'Qwen3-4B' is not on this machine.\n"
        f"hint: Did you mean {NAME} or mlx-community/Qwen3-VL-8B-8bit?  ·  mlxm search Qwen3-4B\n"
    )
    assert far.err.endswith("hint: mlxm search unheard-of\n")


def test_what_can_be_no_name_is_refused(cabinet: Cabinet) -> None:
    """No name reaches a path."""
    assert cabinet.run("show", "../../etc/passwd").code == 2


def test_incomplete_model_tells_what_is_missing_and_whether_it_is_on_its_way(full_cabinet: Cabinet) -> None:
    """What is missing may be coming at this moment."""
    assert "state         incomplete: its weights are missing" in full_cabinet.run("show", "acme/half-here").out
    lock = full_cabinet.hub_cache / ".locks" / "models--acme--half-here" / "mlxm.lock"
    with hold_alone(lock, lambda _: None):
        assert "state         fetching: its weights are missing" in full_cabinet.run("show", "acme/half-here").out
        assert full_cabinet.run("ls", "-q", "--filter", "state=fetching").out == "acme/half-here\n"


def test_shell_completes_names_and_aliases(full_cabinet: Cabinet, run_mlxm: RunMlxm) -> None:
    """From what is on the disk."""
    assert full_cabinet.run("alias", "set", "mine", NAME).code == 0
    done = run_mlxm(_MLXM_COMPLETE="complete_bash", COMP_WORDS="mlxm show m", COMP_CWORD="2")

    assert done.stdout.split() == [NAME, "mlx-community/Qwen3-VL-8B-8bit", "mlxm/tiny", "mine"]


def test_words_for_what_is_rare() -> None:
    """Quantisation in parts, windows, programs of the model's own, and what is not known."""
    known = Characteristics(
        kind="text",
        kind_reason="x",
        parameters=7_000_000_000,
        parameters_from="name",
        quantisation=Quantisation(bits=4, group_size=32, overrides=3, override_bits=(6, 8)),
        sliding_window=4096,
        tool_use=Capability(),
        own_code=("auto_map",),
    )
    model = LocalModel(
        id="a/b", path=HERE_PATH, source="import", state="ready", runnable=True, size_bytes=10, disk_bytes=30,
        revision="c1", revisions=("c1", "c2", "c3"), characteristics=known,
    )  # fmt: skip
    memory = MemoryEstimate(
        context=None, weights_bytes=10, kv_bytes=None, overhead_bytes=1, total_bytes=11, basis="name"
    )
    facts = dict(describe_model(Installed(model, memory, "no"), HERE))

    assert facts["weights"] == "4bit, groups of 32, 3 layers with 6 and 8 bits"
    assert facts["parameters"] == "7.0B (by its name)"
    assert facts["window"] == "4k (4096 tokens)"
    assert facts["own code"] == "auto_map in config.json; mlxm never runs it"
    assert facts["tool use"] == "unknown: nothing says so"
    assert facts["shape"] == "unknown"
    assert facts["context"] == "unknown"
    assert facts["size"] == "10 B, 30 B on disk with all that is left of others"
    assert facts["memory"] == "11 B: weights 10 B, a cache of unknown size, the rest 1 B; a guess by its name"
    assert facts["fits"] == "no, not into the 8.0 GB that models may take"
    assert facts["revision"] == "c1, and 2 more on disk"
    assert facts["used"] == "never"


def test_words_for_what_nobody_knows() -> None:
    """A model whose config.json is damaged is still described."""
    model = LocalModel(
        id="a/b", path=HERE_PATH, source="import", state="broken", state_reason="x", runnable=False, size_bytes=1,
        disk_bytes=1,
    )  # fmt: skip
    found = Installed(model, None, "unknown")

    assert dict(describe_model(found, HERE))["memory"] == "unknown"
    assert dict(describe_model(found, HERE))["fits"] == "unknown"
    assert (found.task, found.quantisation, found.family, found.tool_use) == ("unknown",) * 4
    assert (found.context_length, found.parameters, found.largest_context(HERE)) == (None, None, None)
    assert found.row()[4] == "unknown"


@pytest.mark.parametrize(
    ("packed", "dtype", "text"),
    [
        (None, None, "unknown"),
        (None, "bfloat16", "bf16"),
        (None, "float8", "float8"),
        (Quantisation(bits=4), "bfloat16", "4bit"),
        (Quantisation(bits=4, mode="mxfp4"), None, "mxfp4"),
        (Quantisation(bits=4, mode="gptq"), None, "gptq-4bit"),
        (Quantisation(bits=None, mode="awq"), None, "awq-unknown"),
    ],
)
def test_quantisation_is_told_in_a_word(packed: Quantisation | None, dtype: str | None, text: str) -> None:
    """By its bits where that says it, by the name of its format elsewhere."""
    assert show_quantisation(packed, dtype) == text


def test_real_command_shows_the_built_in_model(run_mlxm: RunMlxm) -> None:
    """In a process of its own, with nothing prepared."""
    done = run_mlxm("show", "mlxm/tiny")

    assert done.returncode == 0
    assert done.stdout.startswith("mlxm/tiny\n  state         built in\n")
    assert "gibberish" in done.stdout


def test_texts_of_others_cannot_act_on_a_terminal(cabinet: Cabinet) -> None:
    """A card or a template with escape sequences moves no cursor; a pipe gets every byte."""
    cabinet.add(
        "a/b", {"config.json": b"{}", "README.md": b"\x1b[2Jgone", "chat_template.jinja": b"\x1b]0;x\x07{{ a }}"}
    )

    for option in ("--card", "--template"):
        terminal = Terminal()
        with cabinet.patch.context() as patch:
            patch.setattr("sys.stdout", terminal)
            patch.setenv("NO_COLOR", "1")
            assert main(["show", "a/b", option]) == 0
        assert "\x1b[2J" not in terminal.getvalue()
        assert "\x1b]" not in terminal.getvalue()
    assert cabinet.run("show", "a/b", "--card").out == "\x1b[2Jgone\n"
