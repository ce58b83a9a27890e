"""Writes the pages of the command line's reference: `python docs/generate_cli.py`, or with `--check` compares them.

What they say is read off the commands and the table of exit codes, so that the pages cannot say anything else.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from mlxm.cli.main import COMMANDS, PROG_NAME, app, load_command
from mlxm.cli.output import EXIT_CODE_MEANINGS, EXIT_CODES_BY_ERROR

FOLDER = Path(__file__).parent
# What a terminal of 80 columns leaves for text.
WIDTH = 78


_REFERENCE = """\
# Command line

Results go to stdout, everything else to stderr. A command that takes `--json` prints one JSON document, and its errors
as JSON too. How a command ends is in [exit codes](exit-codes.md).

`NO_COLOR` and `FORCE_COLOR` are honoured; `--color` beats both.

{commands}
"""

_EXIT_CODES = """\
# Exit codes

Every command ends with one of these. The last column has the `code` of the errors that end so.

| exit code | what it means | error codes |
|---|---|---|
{rows}

An error is two lines on stderr: `error: …` and, where there is something to do, `hint: …`. With `--json` it is one JSON
object on stderr:

```json
{{"error": {{"code": "model_not_found", "message": "There is no model foo.", "hint": "Did you mean foo-4bit?"}}}}
```

A command line that cannot be understood has the code `usage`. When the reader of a pipe leaves early, as in
`mlxm config show | head -1`, the command ends quietly with 1.
"""


def write_reference() -> str:
    """Every command's help, in the order of the table."""
    root = typer.Context(
        get_command(app), info_name=PROG_NAME, terminal_width=WIDTH, help_option_names=["-h", "--help"]
    )
    commands = [part for name in COMMANDS for part in _describe(load_command(name), name, root)]
    return _REFERENCE.format(commands="\n\n".join([_section("##", root), *commands]))


def _describe(command: Any, name: str, parent: typer.Context) -> Iterator[str]:
    """The sections of a command and of those below it."""
    ctx = typer.Context(command, info_name=name, parent=parent, terminal_width=WIDTH)
    yield _section("##" if parent.parent is None else "###", ctx)
    if isinstance(command, TyperGroup):
        for child_name, child in command.commands.items():
            yield from _describe(child, child_name, ctx)


def _section(mark: str, ctx: typer.Context) -> str:
    return f"{mark} {ctx.command_path}\n\n```text\n{ctx.get_help()}\n```"


def write_exit_codes() -> str:
    """The table of exit codes, with the errors that lead to each."""
    rows = [f"| {code.value} | {meaning} | {_list_errors(code)} |" for code, meaning in EXIT_CODE_MEANINGS.items()]
    return _EXIT_CODES.format(rows="\n".join(rows))


def _list_errors(code: int) -> str:
    return ", ".join(f"`{error}`" for error, exit_code in EXIT_CODES_BY_ERROR.items() if exit_code == code)


PAGES: dict[str, Callable[[], str]] = {"cli.md": write_reference, "exit-codes.md": write_exit_codes}


def main(args: list[str], folder: Path = FOLDER) -> int:
    """Write the pages, or with --check name those that differ; the exit code is 1 when any does."""
    pages = {folder / name: write() for name, write in PAGES.items()}
    if args != ["--check"]:
        for path, text in pages.items():
            path.write_text(text, encoding="utf-8")
        return 0
    stale = [path for path, text in pages.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        print(f"{path} is not what the commands say; run: python docs/generate_cli.py", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
