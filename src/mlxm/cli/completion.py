"""`mlxm completion`: lets the shell complete commands and options.

The scripts and the files they live in are typer's; this says which files changed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from typer.completion import get_completion_script, install  # type: ignore[attr-defined]  # not re-exported by name

from mlxm.cli.main import COMPLETE_VARIABLE, PROG_NAME
from mlxm.cli.output import print_line, print_note
from mlxm.errors import InvalidRequest, StoreReadOnly

Shell = Literal["bash", "zsh", "fish"]
ShellArgument = Annotated[Shell, typer.Argument(help="The shell to complete in.", show_default=False)]

# The files that each shell's script and start-up line are written to, below the user's home.
_TOUCHED_FILES: dict[Shell, tuple[str, ...]] = {
    "bash": (".bash_completions/mlxm.sh", ".bashrc"),
    "zsh": (".zfunc/_mlxm", ".zshrc"),
    "fish": (".config/fish/completions/mlxm.fish",),
}

app = typer.Typer(
    help="Complete commands and options in your shell.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)


@app.command("install", epilog="Example: mlxm completion install zsh")
def install_script(shell: ShellArgument) -> None:
    """Write the completion script and have the shell load it."""
    try:
        before = _read_touched(shell)
        install(shell=shell, prog_name=PROG_NAME, complete_var=COMPLETE_VARIABLE)
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"A start-up file of {shell} is not UTF-8 text, so nothing was added to it.",
            hint=f"Put the output of `mlxm completion show {shell}` where your shell reads it.",
        ) from error
    except OSError as error:
        raise StoreReadOnly(
            f"{error.filename} cannot be written: {error.strerror}.",
            hint=f"Put the output of `mlxm completion show {shell}` where your shell reads it.",
        ) from error
    changed = [path for path, text in _read_touched(shell).items() if text.strip() != before[path].strip()]
    for path in changed:
        print_line(f"{'changed' if before[path] else 'wrote'} {path}")
    print_note(f"Start a new {shell} to use it." if changed else f"Completion for {shell} is already installed.")


@app.command("show", epilog="Example: source <(mlxm completion show bash)")
def show_script(shell: ShellArgument) -> None:
    """Print the completion script."""
    print_line(get_completion_script(prog_name=PROG_NAME, complete_var=COMPLETE_VARIABLE, shell=shell))


def _read_touched(shell: Shell) -> dict[Path, str]:
    """The text of every file that the installation may write; nothing for those that do not exist."""
    paths = [Path.home() / name for name in _TOUCHED_FILES[shell]]
    return {path: path.read_text(encoding="utf-8") if path.is_file() else "" for path in paths}
