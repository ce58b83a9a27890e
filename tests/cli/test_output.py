import io
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mlxm.cli.output import (
    EXIT_CODE_MEANINGS,
    EXIT_CODES_BY_ERROR,
    ExitCode,
    exit_code_of,
    paint,
    print_error,
    print_json,
    print_table,
)
from mlxm.errors import BY_CODE, MlxmError, PortInUse

EXIT_CODES_PAGE = Path(__file__).parents[2] / "docs" / "exit-codes.md"
LONG = "word " * 40


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """It does."""
        return True


class Row(msgspec.Struct):
    """Something to print."""

    name: str
    size_bytes: int


def test_every_error_has_an_exit_code() -> None:
    """A new kind of error must say how it ends a command, and none is listed that does not exist."""
    assert set(EXIT_CODES_BY_ERROR) == {MlxmError.code, *BY_CODE}


def test_every_exit_code_is_explained() -> None:
    """People look codes up."""
    assert list(EXIT_CODE_MEANINGS) == list(ExitCode)


def test_page_lists_every_exit_code_with_its_meaning() -> None:
    """The page of exit codes is the table in the code."""
    rows = re.findall(r"^\| (\d+) \| (.+?) \|", EXIT_CODES_PAGE.read_text(encoding="utf-8"), re.MULTILINE)

    assert rows == [(str(code.value), meaning) for code, meaning in EXIT_CODE_MEANINGS.items()]


def test_exit_code_is_that_of_the_kind_of_error() -> None:
    """An error ends a command by its code alone."""
    assert exit_code_of(PortInUse("taken")) == 69


def test_json_is_one_document_with_structs_as_objects(capsys: pytest.CaptureFixture[str]) -> None:
    """Structs become objects whose keys keep their order, and nothing is escaped that need not be."""
    print_json([Row("größe", 3)])

    assert capsys.readouterr().out == '[\n  {\n    "name": "größe",\n    "size_bytes": 3\n  }\n]\n'


def test_table_in_a_pipe_is_aligned_plain_and_never_cut(capsys: pytest.CaptureFixture[str]) -> None:
    """Programs get every character, in columns and without trailing spaces."""
    print_table(["NAME", "NOTE"], [("a", LONG.strip()), ("longer", "")])

    assert capsys.readouterr().out == f"NAME    NOTE\na       {LONG.strip()}\nlonger\n"


def test_table_without_rows_is_its_header(capsys: pytest.CaptureFixture[str]) -> None:
    """An empty list still says what it would list."""
    print_table(["NAME", "NOTE"], [])

    assert capsys.readouterr().out == "NAME  NOTE\n"


def test_table_on_a_terminal_wraps_to_its_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """People get whole words within the window, and brackets that are no markup."""
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    print_table(["NAME", "NOTE"], [("[red]", LONG)])
    lines = re.sub("\x1b\\[[0-9;]*m", "", terminal.getvalue()).splitlines()

    assert "\x1b[1m" in terminal.getvalue()
    assert max(map(len, lines)) <= 60
    assert sum(line.count("word") for line in lines) == 40
    assert lines[1].startswith("[red]")


def test_table_forced_into_colors_is_still_not_cut(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pager wants the colours and every column."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    print_table(["NAME", "NOTE"], [("a", LONG)])
    header, row = capsys.readouterr().out.splitlines()

    assert "\x1b[1m" in header
    assert row.count("word") == 40


def test_error_is_two_lines_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    """What happened, then what to do."""
    print_error("not_found", "There is no such thing.", "Make one.", as_json=False)

    assert capsys.readouterr() == ("", "error: There is no such thing.\nhint: Make one.\n")


def test_error_as_json_is_one_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    """Programs find the code, the message and the hint under one key."""
    print_error("not_found", "There is no “thing”.", None, as_json=True)
    printed = capsys.readouterr()

    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert json.loads(printed.err) == {
        "error": {"code": "not_found", "message": "There is no “thing”.", "hint": None},
    }


@pytest.mark.parametrize(
    ("stream", "env", "painted"),
    [
        (Terminal(), {}, "\x1b[1mx\x1b[0m"),
        (Terminal(), {"NO_COLOR": "1"}, "x"),
        (Terminal(), {"NO_COLOR": ""}, "\x1b[1mx\x1b[0m"),
        (io.StringIO(), {}, "x"),
        (io.StringIO(), {"FORCE_COLOR": "1"}, "\x1b[1mx\x1b[0m"),
    ],
)
def test_color_is_for_terminals_unless_the_environment_says_otherwise(
    stream: io.StringIO, env: dict[str, str], painted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Colours go where they are seen, and where they are asked for; an empty variable is none."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)

    assert paint("x", "1", stream) == painted


def test_piped_table_needs_no_rich(run_mlxm: Callable[..., subprocess.CompletedProcess[Any]]) -> None:
    """A script that reads settings does not wait for a terminal library."""
    done = run_mlxm("config", "show", PYTHONPROFILEIMPORTTIME="1")

    assert done.stdout.startswith("NAME ")
    assert "rich.table" not in done.stderr
