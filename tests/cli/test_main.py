import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import typer
from typer.core import TyperGroup

from mlxm import __version__
from mlxm.cli.main import COMMANDS, CommandEntry, load_command, main

RunMlxm = Callable[..., subprocess.CompletedProcess[str]]
RunInTerminal = Callable[..., Any]

GOLDEN_HELP = Path(__file__).with_name("help.txt")
HEAVY = (
    "mlx",
    "mlx_lm",
    "mlx_vlm",
    "transformers",
    "litestar",
    "textual",
    "sqlite_utils",
    "pydantic_settings",
    "huggingface_hub",
    "rich",
    "msgspec",
)

FAILING_MODULE = dedent(
    """
    import typer

    from mlxm.cli.output import JsonFlag
    from mlxm.errors import ModelNotFound, OutOfMemory

    app = typer.Typer(add_completion=False)


    @app.command()
    def missing(*, as_json: JsonFlag = False) -> None:
        raise ModelNotFound("there is no model 'foo'", hint="mlxm search foo")


    @app.command()
    def full() -> None:
        raise OutOfMemory("12 GiB are needed")


    @app.command()
    def seven() -> None:
        raise typer.Exit(7)


    @app.command()
    def prompt() -> None:
        raise typer.Abort


    @app.command()
    def interrupted() -> None:
        raise KeyboardInterrupt


    @app.command()
    def odd() -> None:
        raise typer.TyperException("The disk is odd.")


    @app.command()
    def write() -> None:
        print("a result")


    @app.command()
    def wait() -> None:
        import signal

        print("waiting", flush=True)
        signal.pause()
    """
)


@pytest.fixture
def trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A command `trial` in the table, whose sub-commands end in every way."""
    (tmp_path / "trial_command.py").write_text(FAILING_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setitem(COMMANDS, "trial", CommandEntry("trial_command", "End in every way."))
    yield
    sys.modules.pop("trial_command", None)


def _start_trial(command: str, stdout: int) -> subprocess.Popen[str]:
    """The command `trial` in a process of its own."""
    script = dedent(
        f"""
        import sys
        from mlxm.cli.main import COMMANDS, CommandEntry, main

        COMMANDS["trial"] = CommandEntry("trial_command", "End in every way.")
        sys.exit(main({["trial", command]!r}))
        """
    )
    return subprocess.Popen([sys.executable, "-c", script], text=True, stdout=stdout, stderr=subprocess.PIPE)


def test_help_at_80_columns_is_the_golden_text(run_mlxm: RunMlxm) -> None:
    """The overview lists every command of the table and fits a narrow terminal."""
    done = run_mlxm("--help")

    assert (GOLDEN_HELP.read_text(), "", 0) == (done.stdout, done.stderr, done.returncode)
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert all(f"\n  {name} " in done.stdout for name in COMMANDS)


@pytest.mark.usefixtures("user_home")
@pytest.mark.parametrize("option", ["--help", "--version"])
def test_overview_loads_no_heavy_library_and_no_command(option: str) -> None:
    """What every user sees first must not wait for what only some commands need."""
    script = "import sys; from mlxm.cli.main import main; main(sys.argv[1:]); print(*sys.modules, sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", script, option], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = set(done.stdout.splitlines())

    assert "mlxm.cli.main" in loaded
    assert loaded.isdisjoint(HEAVY)
    assert loaded.isdisjoint(entry.module for entry in COMMANDS.values())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_of_the_table_loads_and_helps(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A line in the table is a promise that the command is there."""
    assert isinstance(import_module(COMMANDS[name].module).app, typer.Typer)
    assert main([name, "--help"]) == 0

    printed = capsys.readouterr()
    assert printed.out.startswith(f"Usage: mlxm {name} ")
    assert printed.err == ""


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_it_is_for(name: str) -> None:
    """A command and each of its sub-commands and options has a help text."""

    def walk(command: Any) -> None:
        assert command.help, command.name
        assert all(param.help for param in command.params), command.name
        if isinstance(command, TyperGroup):
            for child in command.commands.values():
                walk(child)

    walk(load_command(name))


def test_version_is_the_package_version(run_mlxm: RunMlxm) -> None:
    """--version prints one line."""
    assert run_mlxm("--version").stdout == f"mlxm {__version__}\n"


def test_installed_script_and_module_are_the_same_command(run_mlxm: RunMlxm) -> None:
    """`mlxm` and `python -m mlxm` speak with one name."""
    script = Path(sys.executable).with_name("mlxm")
    done = subprocess.run([script, "--help"], capture_output=True, text=True, check=True, timeout=60)

    assert done.stdout == run_mlxm("--help").stdout


@pytest.mark.parametrize(
    ("args", "error", "hint"),
    [
        (["docter"], "No such command 'docter'.", "Did you mean 'doctor'?"),
        (["xyzzy"], "No such command 'xyzzy'.", "See: mlxm --help"),
        (["--versoin"], "No such option: --versoin.", "Did you mean --version?"),
        (
            ["--color", "red"],
            "Invalid value for '--color': 'red' is not one of 'auto', 'always', 'never'.",
            "See: mlxm --help",
        ),
        (["completion", "shw"], "No such command 'shw'.", "Did you mean 'show'?"),
        (
            ["completion", "show", "bash", "x"],
            "Got unexpected extra argument(s) (x).",
            "See: mlxm completion show --help",
        ),
    ],
)
def test_usage_error_names_what_is_near_or_the_help(
    args: list[str], error: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistyped line ends with 2 and one way on."""
    assert main(args) == 2
    assert capsys.readouterr() == ("", f"error: {error}\nhint: {hint}\n")


def test_usage_error_is_json_where_json_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    """A program that asks for JSON gets its own mistakes as JSON too."""
    assert main(["doctor", "--json", "--fats"]) == 2

    printed = capsys.readouterr()
    assert printed.out == ""
    assert json.loads(printed.err)["error"]["message"] == "No such option: --fats."


def test_group_without_command_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    """A group alone is a usage error whose message is the help."""
    assert main(["completion"]) == 2

    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("Usage: mlxm completion ")


@pytest.mark.usefixtures("trial")
def test_failure_is_told_in_words_with_its_hint_and_code(capsys: pytest.CaptureFixture[str]) -> None:
    """An MlxmError becomes two lines on stderr and the exit code of its kind."""
    assert main(["trial", "missing"]) == 4
    assert capsys.readouterr() == ("", "error: there is no model 'foo'\nhint: mlxm search foo\n")


@pytest.mark.usefixtures("trial")
def test_failure_without_hint_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is made up where there is nothing to advise."""
    assert main(["trial", "full"]) == 8
    assert capsys.readouterr() == ("", "error: 12 GiB are needed\n")


@pytest.mark.usefixtures("trial")
def test_failure_is_one_json_object_where_json_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    """Programs read the same failure as JSON, still on stderr."""
    assert main(["trial", "missing", "--json"]) == 4

    printed = capsys.readouterr()
    assert printed.out == ""
    assert json.loads(printed.err) == {
        "error": {"code": "model_not_found", "message": "there is no model 'foo'", "hint": "mlxm search foo"}
    }


@pytest.mark.usefixtures("trial")
def test_words_after_two_dashes_are_no_options(capsys: pytest.CaptureFixture[str]) -> None:
    """`-- --json` is text for the command, not a wish for JSON."""
    assert main(["trial", "missing", "--", "--json"]) == 2
    assert capsys.readouterr().err.startswith("error: Got unexpected extra argument")


@pytest.mark.usefixtures("trial")
@pytest.mark.parametrize(("command", "code"), [("write", 0), ("seven", 7), ("prompt", 130)])
def test_command_ends_with_the_code_it_chose(command: str, code: int) -> None:
    """A command may return, exit with a code of its own, or be abandoned at a prompt."""
    assert main(["trial", command]) == code


@pytest.mark.usefixtures("trial")
@pytest.mark.parametrize(("terminal", "printed"), [(True, "\n"), (False, "")])
def test_control_c_leaves_the_prompt_on_a_line_of_its_own(
    printed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, terminal: bool
) -> None:
    """The terminal has written ^C where the cursor stands."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)

    assert main(["trial", "interrupted"]) == 130
    assert capsys.readouterr() == ("", printed)


@pytest.mark.usefixtures("trial")
def test_complaint_of_typer_that_is_no_usage_error_has_no_hint(capsys: pytest.CaptureFixture[str]) -> None:
    """The help would not help."""
    assert main(["trial", "odd"]) == 1
    assert capsys.readouterr() == ("", "error: The disk is odd.\n")


@pytest.mark.usefixtures("trial")
def test_control_c_ends_with_130_and_no_traceback() -> None:
    """An interrupted command has nothing to say."""
    with _start_trial("wait", stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == ("", "")

    assert process.returncode == 130


@pytest.mark.usefixtures("trial")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_reader_that_left_ends_the_command_quietly(unbuffered: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`mlxm … | head` must not end in a traceback, whether the command notices while it prints or at its end."""
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    theirs, mine = os.pipe()
    os.close(theirs)
    with _start_trial("write", stdout=mine) as process:
        os.close(mine)
        assert process.communicate(timeout=60)[1] == ""

    assert process.returncode == 1


@pytest.mark.usefixtures("user_home")
def test_reader_that_left_ends_the_help_quietly() -> None:
    """The same for what typer prints itself."""
    theirs, mine = os.pipe()
    os.close(theirs)
    with subprocess.Popen([sys.executable, "-m", "mlxm", "--help"], stdout=mine, stderr=subprocess.PIPE) as process:
        os.close(mine)
        assert process.communicate(timeout=60)[1] == b""

    assert process.returncode == 1


def test_bare_command_in_a_pipe_is_a_usage_error_with_the_help(run_mlxm: RunMlxm) -> None:
    """A script that forgot the command gets nothing on stdout and 2."""
    done = run_mlxm()

    assert (done.stdout, done.returncode) == ("", 2)
    assert done.stderr == GOLDEN_HELP.read_text()


def test_bare_command_on_a_terminal_shows_the_status(run_in_terminal: RunInTerminal) -> None:
    """A person who types `mlxm` learns what runs and what to do next."""
    run = run_in_terminal()

    assert run.code == 0
    assert run.screen.startswith(f"mlxm {__version__}: no server is running\n")
    assert "mlxm serve" in run.screen


@pytest.mark.parametrize(
    ("args", "env", "colored"),
    [
        ([], {}, True),
        ([], {"NO_COLOR": "1"}, False),
        (["--color", "never"], {"FORCE_COLOR": "1"}, False),
        (["--color", "always"], {"NO_COLOR": "1"}, True),
    ],
)
def test_color_on_a_terminal_follows_option_then_environment(
    args: list[str], env: dict[str, str], *, colored: bool, run_in_terminal: RunInTerminal
) -> None:
    """--color beats NO_COLOR and FORCE_COLOR, which beat what the terminal can do."""
    run = run_in_terminal(*args, "completion", "install", "zsh", HOME="/dev/null", **env)

    assert bool(re.search("\x1b\\[", run.screen)) is colored
    assert "cannot be written" in run.screen
    assert run.code == 73


def test_color_can_be_forced_into_a_pipe(run_mlxm: RunMlxm) -> None:
    """`--color always` is for pagers."""
    assert "\x1b[" in run_mlxm("--color", "always", "completion", "install", "zsh", HOME="/dev/null").stderr
    assert "\x1b[" not in run_mlxm("completion", "install", "zsh", HOME="/dev/null").stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("args", [["--help"], ["config", "show"], ["--version"]])
def test_full_disk_behind_stdout_is_told_in_words(args: list[str], user_home: Path) -> None:
    """The result is lost, and that is said without a traceback."""
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "mlxm", *args]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, cwd=user_home)  # noqa: PLW1510
    assert done.returncode == 1
    assert done.stderr.startswith("error: Cannot write the result")
    assert done.stderr.count("\n") == 2


@pytest.mark.parametrize("command", ["config show", "serve --port 0"])
def test_closed_stdout_is_like_a_reader_who_has_gone(command: str, user_home: Path) -> None:
    """The command fails without a traceback."""
    line = f"{sys.executable} -m mlxm {command} >&-"
    done = subprocess.run(line, shell=True, stderr=subprocess.PIPE, text=True, timeout=60, cwd=user_home)  # noqa: PLW1510, S602
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_path_beyond_the_encoding_of_stdout_is_told_in_words(run_mlxm: RunMlxm, user_home: Path) -> None:
    """A terminal of ASCII alone cannot show every name."""
    home = user_home / "gr\u00f6\u00dfe"
    done = run_mlxm("config", "path", MLXM_HOME=str(home), PYTHONIOENCODING="ascii")
    assert done.returncode == 1
    assert done.stderr.startswith("error: The encoding of stdout, ascii, cannot write ")
    assert "Traceback" not in done.stderr
