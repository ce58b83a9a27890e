from __future__ import annotations

import json
import os
import pty
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mlxm.cli.config import _complete_name
from mlxm.cli.main import main
from mlxm.settings import SETTINGS

GOLDEN_ORIGINS = Path(__file__).with_name("config_show_origin.txt")
BOUND_S = 60
EVERY_SETTING = pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)

RunMlxm = Callable[..., subprocess.CompletedProcess[str]]
RunInTerminal = Callable[..., Any]


class Answer(NamedTuple):
    """How a command ended, and what it said where."""

    code: int
    out: str
    err: str


RunConfig = Callable[..., Answer]


@pytest.fixture
def config(user_home: Path) -> Path:
    """The config.toml of a person who has none yet."""
    return user_home / ".mlxm" / "config.toml"


@pytest.fixture
def write_config(config: Path) -> Callable[[str], None]:
    """Write config.toml as a person would."""

    def write(text: str) -> None:
        config.parent.mkdir(mode=0o700, exist_ok=True)
        config.write_text(text)

    return write


@pytest.fixture
def run_config(
    user_home: Path,  # noqa: ARG001  # it sets the environment
    capsys: pytest.CaptureFixture[str],
) -> RunConfig:
    """Run `mlxm config …` in this process."""

    def run(*args: str) -> Answer:
        code = main(["config", *args])
        said = capsys.readouterr()
        return Answer(code, said.out, said.err)

    return run


@pytest.fixture
def make_editor(tmp_path: Path) -> Callable[[str], str]:
    """A command that edits like a person: it runs Python lines that know the `path` and the `turn`, from 1."""

    def make(code: str) -> str:
        script = tmp_path / "editor.py"
        turns = tmp_path / "turns"
        count = f"turns = pathlib.Path({str(turns)!r})\nturn = turns.stat().st_size + 1 if turns.exists() else 1"
        head = f"import pathlib, sys\npath = pathlib.Path(sys.argv[-1])\n{count}\nturns.write_text('.' * turn)\n"
        script.write_text(head + code)
        return shlex.join([sys.executable, str(script), "--wait"])

    return make


@EVERY_SETTING
def test_get_prints_the_bare_value(setting: Any, run_config: RunConfig) -> None:
    """It can be used in a shell as it is, and set again as it is."""
    answer = run_config("get", setting.name)
    shown = setting.default if isinstance(setting.default, str) else json.dumps(setting.default)
    assert Answer(0, f"{shown}\n", "") == answer
    assert run_config("set", setting.name, shown).code == 0
    assert run_config("get", setting.name) == answer


@pytest.mark.parametrize("command", [["get"], ["unset"], ["set"]])
def test_an_unknown_name_is_told_the_nearest(command: list[str], run_config: RunConfig, config: Path) -> None:
    """Exit code 3, and nothing is written."""
    value = ["1"] if command == ["set"] else []
    answer = run_config(*command, "server.prot", *value)
    assert Answer(3, "", "error: There is no setting server.prot.\nhint: Did you mean server.port?\n") == answer
    assert not config.exists()


def test_set_writes_the_value_and_says_where(run_config: RunConfig, config: Path) -> None:
    """The result is in the file; the words are for the person."""
    assert Answer(0, "", "server.port = 8080 in ~/.mlxm/config.toml\n") == run_config("set", "server.port", "8080")
    assert config.read_text() == "[server]\nport = 8080\n"
    assert run_config("get", "server.port").out == "8080\n"


def test_set_keeps_comments(run_config: RunConfig, config: Path, write_config: Callable[[str], None]) -> None:
    """What the person wrote around the values is theirs."""
    write_config("# mine\n[server] # here\nport = 1   # one\n")
    run_config("set", "server.port", "2")
    assert config.read_text() == "# mine\n[server] # here\nport = 2   # one\n"


@pytest.mark.parametrize("value", ["-1", "--help-me", "eighty", "65536", ""])
def test_set_refuses_what_is_not_allowed(
    value: str, run_config: RunConfig, config: Path, write_config: Callable[[str], None]
) -> None:
    """A value that starts with a dash is a value too; the file stays as it was."""
    write_config("server.port = 1\n")
    answer = run_config("set", "server.port", value)
    message = f"error: server.port must be a whole number from 0 to 65535, not {value}.\nhint: For example: 6596\n"
    assert Answer(3, "", message) == answer
    assert config.read_text() == "server.port = 1\n"


def test_a_change_that_the_environment_hides_is_said(run_config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise it would seem to have no effect."""
    monkeypatch.setenv("MLXM_SERVER__PORT", "9000")
    note = "but MLXM_SERVER__PORT in the environment wins: 9000\n"
    assert run_config("set", "server.port", "8080").err.endswith(note)
    assert run_config("get", "server.port").out == "9000\n"
    assert run_config("unset", "server.port").err == f"server.port = 6596, the default\n{note}"


def test_unset_brings_the_default_back(run_config: RunConfig) -> None:
    """A second time it says that there is nothing to do."""
    run_config("set", "log.level", "debug")
    assert Answer(0, "", "log.level = info, the default\n") == run_config("unset", "log.level")
    assert run_config("get", "log.level").out == "info\n"
    assert Answer(0, "", "log.level is not in ~/.mlxm/config.toml\n") == run_config("unset", "log.level")


def test_unset_takes_out_what_nobody_knows(run_config: RunConfig, write_config: Callable[[str], None]) -> None:
    """It is the way out after a misspelt line."""
    write_config("[server]\nprot = 1\n")
    assert run_config("validate").code == 3
    assert Answer(0, "", "server.prot is out of ~/.mlxm/config.toml\n") == run_config("unset", "server.prot")
    assert run_config("validate").code == 0


def test_path_is_printed_whatever_the_file_says(
    run_config: RunConfig, config: Path, write_config: Callable[[str], None]
) -> None:
    """It is needed most when the file is broken."""
    write_config("[server")
    assert Answer(0, f"{config}\n", "") == run_config("path")


def test_validate_says_whether_all_is_well(
    run_config: RunConfig, write_config: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file is fine; a mistake in the file or the environment is not."""
    assert Answer(0, "defaults; there is no ~/.mlxm/config.toml\n", "") == run_config("validate")
    write_config("server.port = 80\n")
    assert Answer(0, "~/.mlxm/config.toml is valid\n", "") == run_config("validate")
    monkeypatch.setenv("MLXM_LOG__LEVLE", "debug")
    answer = run_config("validate")
    assert answer.code == 3
    assert answer.err.startswith(
        "error: Unknown setting MLXM_LOG__LEVLE in the environment: did you mean MLXM_LOG__LEVEL?"
    )


def test_schema_is_the_shape_of_the_file(run_config: RunConfig) -> None:
    """Editors complete names and refuse unknown ones with it."""
    answer = run_config("schema")
    schema = json.loads(answer.out)
    assert schema["additionalProperties"] is False
    server = schema["$defs"]["ServerSettings"]
    assert server["additionalProperties"] is False
    assert (server["properties"]["port"]["minimum"], server["properties"]["port"]["maximum"]) == (0, 65535)
    described = {
        f"{group}.{key}": field["description"]
        for group, reference in schema["properties"].items()
        for key, field in schema["$defs"][reference["$ref"].rpartition("/")[2]]["properties"].items()
    }
    assert {setting.name: setting.meaning for setting in SETTINGS.values()} == described


def test_show_prints_every_value(run_config: RunConfig) -> None:
    """In columns, for a pipe."""
    lines = run_config("show").out.splitlines()
    assert lines[0].split() == ["NAME", "VALUE"]
    assert [line.split()[0] for line in lines[1:]] == list(SETTINGS)


def test_show_origin_in_a_pipe_is_plain_and_aligned(run_mlxm: RunMlxm, write_config: Callable[[str], None]) -> None:
    """The columns are data; the precedence is said beside them."""
    write_config("[server]\nport = 8080\n")
    done = run_mlxm("config", "show", "--origin", MLXM_LOG__LEVEL="debug")
    assert GOLDEN_ORIGINS.read_text() == done.stdout
    assert done.stderr == "precedence: flag > environment > config.toml > default\n"


def test_show_origin_on_a_terminal_is_a_table(run_in_terminal: RunInTerminal) -> None:
    """Every setting has its line, and the precedence stands below."""
    run = run_in_terminal("config", "show", "--origin", NO_COLOR="1")
    assert run.code == 0
    for name in SETTINGS:
        assert name in run.screen
    assert "ORIGIN" in run.screen
    assert run.screen.rstrip().endswith("precedence: flag > environment > config.toml > default")


def test_show_json_has_value_and_origin(run_config: RunConfig, write_config: Callable[[str], None]) -> None:
    """One object for each setting, with the types of config.toml."""
    write_config('[server]\nport = 8080\n[prep]\nmemory = "1GiB"\n')
    answer = run_config("show", "--json")
    rows = json.loads(answer.out)
    assert [row["name"] for row in rows] == list(SETTINGS)
    assert {"name": "server.port", "value": 8080, "origin": "config.toml"} in rows
    assert {"name": "prep.memory", "value": "1GiB", "origin": "config.toml"} in rows
    assert {"name": "log.level", "value": "info", "origin": "default"} in rows
    assert answer.err == ""


def test_a_bad_file_is_an_error_in_json_where_json_is_asked_for(
    run_config: RunConfig, write_config: Callable[[str], None]
) -> None:
    """Programs read the code."""
    write_config("[server")
    answer = run_config("show", "--json")
    assert (answer.code, answer.out, json.loads(answer.err)["error"]["code"]) == (3, "", "config_invalid")


def test_edit_opens_a_draft_where_there_is_no_file(
    run_mlxm: RunMlxm, config: Path, make_editor: Callable[[str], str]
) -> None:
    """VISUAL counts more than EDITOR, and both may have arguments."""
    editor = make_editor("path.write_text(path.read_text().replace('# port = 6596', 'port = 8080'))")
    done = run_mlxm("config", "edit", VISUAL=editor, EDITOR="false")
    assert (done.returncode, done.stderr) == (0, "")
    assert tomllib.loads(config.read_text())["server"] == {"port": 8080}


def test_edit_without_a_terminal_keeps_the_file_and_says_what_is_wrong(
    run_mlxm: RunMlxm, config: Path, make_editor: Callable[[str], str]
) -> None:
    """Nobody is there to be asked."""
    done = run_mlxm("config", "edit", VISUAL="", EDITOR=make_editor("path.write_text('server.port = 99999')"))
    assert done.returncode == 3
    assert "server.port = 99999" in done.stderr
    assert config.read_text() == "server.port = 99999"


@pytest.mark.parametrize(("answer", "code", "text"), [("y", 0, "server.port = 80"), ("n", 3, "server.port = 99999")])
def test_edit_on_a_terminal_offers_to_open_a_bad_file_again(
    answer: str, code: int, text: str, user_home: Path, config: Path, make_editor: Callable[[str], str]
) -> None:
    """Whoever declines keeps the file and gets the error."""
    editor = make_editor("path.write_text(f'server.port = {99999 if turn == 1 else 80}')")
    mine, theirs = pty.openpty()
    os.write(mine, f"{answer}\n".encode())
    try:
        done = subprocess.run(
            [sys.executable, "-m", "mlxm", "config", "edit"],
            stdin=theirs,
            capture_output=True,
            text=True,
            timeout=BOUND_S,
            cwd=user_home,
            env={**os.environ, "VISUAL": editor},
            check=False,
        )
    finally:
        os.close(theirs)
        os.close(mine)
    assert (done.returncode, config.read_text()) == (code, text)
    assert "Open it again? [Y/n]" in done.stderr
    assert done.stderr.count("server.port = 99999") == (1 if code == 0 else 2)


@pytest.mark.parametrize(
    ("editor", "code", "message"),
    [("no-such-editor", 2, "cannot be started"), ("'", 2, "cannot be started"), ("false", 1, "failed with 1")],
)
def test_an_editor_that_does_not_work_is_an_error(
    editor: str, code: int, message: str, run_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the command."""
    monkeypatch.setenv("VISUAL", editor)
    answer = run_config("edit")
    assert answer.code == code
    assert answer.err.startswith(f"error: The editor {editor} {message}")


def test_the_shell_is_offered_the_names_of_settings() -> None:
    """Only those that begin as typed."""
    assert _complete_name("log.") == ["log.level", "log.format"]
    assert _complete_name("") == list(SETTINGS)


@pytest.mark.parametrize("command", ["get", "set", "unset", "edit", "path", "validate", "schema", "show"])
def test_help_has_an_example(command: str, run_config: RunConfig) -> None:
    """People copy before they read."""
    answer = run_config(command, "--help")
    assert answer.code == 0
    assert "Example: " in answer.out
