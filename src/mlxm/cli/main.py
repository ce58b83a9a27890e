"""The `mlxm` command: one table of commands, each loaded when it runs.

One wrapper turns every failure into words (or JSON) on stderr and an exit code.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any, Literal, cast

import typer
from typer._click.exceptions import NoArgsIsHelpError, UsageError  # typer exports no usage error but BadParameter
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from mlxm import __version__
from mlxm.cli.output import ExitCode, exit_code_of, print_error, print_line
from mlxm.cli.values import HELP_OPTION_NAMES, skip_conversions
from mlxm.errors import MlxmError

PROG_NAME = "mlxm"
COMPLETE_VARIABLE = "_MLXM_COMPLETE"
OFFLINE_VARIABLE = "HF_HUB_OFFLINE"
"""Hugging Face's own word for it, which child processes obey too."""

# typer names what is near inside its message: once as a question, once in brackets.
_NEAREST_NAMES = re.compile(r" Did you mean (?P<names>.+)\?$| \(Possible options: (?P<options>.+)\)$")

ColorChoice = Literal["auto", "always", "never"]


@dataclass(frozen=True, slots=True)
class CommandEntry:
    """Where a command lives and what it is for; its module defines `app`."""

    module: str
    short_help: str


COMMANDS: dict[str, CommandEntry] = {
    "search": CommandEntry("mlxm.cli.search", "Find models on the Hub."),
    "pull": CommandEntry("mlxm.cli.pull", "Download a model."),
    "ls": CommandEntry("mlxm.cli.ls", "List the models on this machine."),
    "list": CommandEntry("mlxm.cli.ls", "The same as ls."),
    "show": CommandEntry("mlxm.cli.show", "Show what a model is, and what it takes to run it."),
    "verify": CommandEntry("mlxm.cli.verify", "Check the files of a model."),
    "import": CommandEntry("mlxm.cli.import_", "Use a folder of your own as a model."),
    "alias": CommandEntry("mlxm.cli.alias", "Give models names of your own."),
    "rm": CommandEntry("mlxm.cli.rm", "Remove models from the disk."),
    "prune": CommandEntry("mlxm.cli.prune", "Remove unfinished downloads and old revisions."),
    "serve": CommandEntry("mlxm.cli.serve", "Start the server."),
    "stop": CommandEntry("mlxm.cli.stop", "Stop the server."),
    "ps": CommandEntry("mlxm.cli.ps", "Show which models are loaded."),
    "load": CommandEntry("mlxm.cli.load", "Load a model into the running server."),
    "unload": CommandEntry("mlxm.cli.unload", "Let a loaded model go."),
    "restart": CommandEntry("mlxm.cli.restart", "Start a loaded model anew."),
    "config": CommandEntry("mlxm.cli.config", "Read and change settings."),
    "doctor": CommandEntry("mlxm.cli.doctor", "Check this machine and say what to fix."),
    "completion": CommandEntry("mlxm.cli.completion", "Complete commands and options in your shell."),
}


class LazyGroup(TyperGroup):
    """A group that lists its commands from the table and imports the one that runs."""

    def __init__(self, **attrs: Any) -> None:
        super().__init__(**attrs)
        for name, entry in COMMANDS.items():
            self.add_command(TyperCommand(name, short_help=entry.short_help, rich_markup_mode=None))

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The named command itself, where listing and completing names are content with the table's line."""
        name, listed, rest = super().resolve_command(ctx, args)
        return name, listed and load_command(args[0]), rest


def load_command(name: str) -> TyperCommand | TyperGroup:
    """Import a command of the table."""
    command = cast("TyperCommand | TyperGroup", get_command(import_module(COMMANDS[name].module).app))
    command.name = name
    _print_help_plainly(command)
    skip_conversions(command)
    return command


def _print_help_plainly(command: Any) -> None:
    """Have help written without rich, which costs more time than all the rest of it."""
    command.rich_markup_mode = None
    if isinstance(command, TyperGroup):
        for child in command.commands.values():
            _print_help_plainly(child)


app = typer.Typer(
    cls=LazyGroup,
    add_completion=False,
    invoke_without_command=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": HELP_OPTION_NAMES},
)


def _print_version(value: bool) -> None:
    """Print the version and end."""
    if value:
        print_line(f"{PROG_NAME} {__version__}")
        raise typer.Exit


@app.callback(epilog="\b\nExamples:\n  mlxm search qwen3\n  mlxm pull mlx-community/Qwen3-4B-4bit\n  mlxm serve")
def _root(
    ctx: typer.Context,
    *,
    version: Annotated[  # noqa: ARG001  # its callback acts
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    color: Annotated[ColorChoice, typer.Option(help="Colour what is printed.")] = "auto",
    offline: Annotated[bool, typer.Option("--offline", help="Ask nothing of the Hub.")] = False,
) -> None:
    """Find, download, run and serve MLX models."""
    _choose_color(color)
    if offline:
        os.environ[OFFLINE_VARIABLE] = "1"
    if ctx.invoked_subcommand is not None:
        return
    if not sys.stdout.isatty():
        typer.echo(ctx.get_help(), err=True)
        raise typer.Exit(ExitCode.USAGE)
    from mlxm.cli.status import print_status

    print_status()


def _choose_color(color: ColorChoice) -> None:
    """Say it in the environment's own words, so that rich and child processes obey too."""
    if color == "auto":
        return
    wanted, unwanted = ("FORCE_COLOR", "NO_COLOR") if color == "always" else ("NO_COLOR", "FORCE_COLOR")
    os.environ[wanted] = "1"
    os.environ.pop(unwanted, None)


def main(argv: Sequence[str] | None = None) -> int:  # noqa: PLR0911  # an exit for every way to fail
    """Run a command line; the exit code is returned, and what went wrong is on stderr."""
    args = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in args[: args.index("--")] if "--" in args else "--json" in args
    _stand_in_for_closed_stdout()
    try:
        code = _run(args)
        sys.stdout.flush()
    except MlxmError as error:
        print_error(error.code, error.message, error.hint, as_json=as_json)
        return exit_code_of(error)
    except NoArgsIsHelpError as error:
        typer.echo(error.format_message(), err=True)
        return error.exit_code
    except typer.TyperException as error:
        message, hint = _explain_usage(error)
        print_error("usage", message, hint, as_json=as_json)
        return error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        _discard_stdout()
        return ExitCode.FAILED
    except (OSError, UnicodeEncodeError) as error:
        return _explain_unwritable(error, as_json=as_json)
    if code == ExitCode.INTERRUPTED and sys.stderr.isatty():
        sys.stderr.write("\n")  # the prompt would stand behind ^C
    return code


def _run(args: list[str]) -> int:
    """Parse and call; a command ends well by returning, otherwise by typer.Exit or an error."""
    if COMPLETE_VARIABLE in os.environ:
        from typer.completion import completion_init  # type: ignore[attr-defined]  # public, but not re-exported by name

        completion_init()
    root = get_command(app)
    skip_conversions(root)
    code = root.main(args=args, prog_name=PROG_NAME, complete_var=COMPLETE_VARIABLE, standalone_mode=False)
    return code if isinstance(code, int) else ExitCode.OK


def _explain_usage(error: typer.TyperException) -> tuple[str, str | None]:
    """What typer complains about, with the nearest names or the way to the help as the hint."""
    said = error.format_message()
    nearest = _NEAREST_NAMES.search(said)
    message = _NEAREST_NAMES.sub("", said).replace("Value error, ", "").removesuffix(".") + "."
    if nearest is not None:
        return message, f"Did you mean {nearest['names'] or nearest['options']}?"
    if isinstance(error, UsageError) and error.ctx is not None:
        return message, f"See: {error.ctx.command_path} --help"
    return message, None


def _explain_unwritable(error: OSError | UnicodeEncodeError, *, as_json: bool) -> int:
    """Say that the result cannot be written; any other failure of the system is raised again."""
    if isinstance(error, UnicodeEncodeError):
        unwritable = ascii(error.object[error.start : error.end])
        message = f"The encoding of stdout, {error.encoding}, cannot write {unwritable}."
        hint = "Set PYTHONIOENCODING=utf-8:backslashreplace."
    elif error.errno == errno.ENOSPC:
        message, hint = "Cannot write the result: no space is left.", "Free some space, or write elsewhere."
    else:
        raise error
    _discard_stdout()
    print_error(MlxmError.code, message, hint, as_json=as_json)
    return ExitCode.FAILED


def _stand_in_for_closed_stdout() -> None:
    """Put a pipe that nobody reads where stdout is closed: one case fewer, and no file opened later becomes stdout."""
    if sys.stdout is not None:
        return
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)
    if writer != 1:
        os.close(writer)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  # for as long as the process lives


def _discard_stdout() -> None:
    """Let the interpreter's last flush go nowhere: whoever read our output has gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
