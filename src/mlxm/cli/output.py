"""What every command prints, and the exit code it ends with.

Results go to stdout and everything else to stderr, so that a pipe carries data only. rich and msgspec load when
something is printed with them, never for `--help`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from mlxm.errors import MlxmError

if TYPE_CHECKING:
    from rich.table import Table


class ExitCode(IntEnum):
    """Every way in which a command ends."""

    OK = 0
    FAILED = 1
    USAGE = 2
    BAD_CONFIG = 3
    NOT_FOUND = 4
    UNREACHABLE = 5
    REFUSED = 6
    OFFLINE = 7
    TOO_BIG = 8
    CONFLICT = 9
    UNHEALTHY = 10
    PORT_IN_USE = 69
    CANNOT_WRITE = 73
    HOME_IN_USE = 75
    OPEN_WITHOUT_KEY = 78
    INTERRUPTED = 130


EXIT_CODE_MEANINGS: dict[ExitCode, str] = {
    ExitCode.OK: "It worked.",
    ExitCode.FAILED: "It failed in a way that no other code names.",
    ExitCode.USAGE: "The command line or the request is not understood.",
    ExitCode.BAD_CONFIG: "The configuration is not valid.",
    ExitCode.NOT_FOUND: "There is no such model, setting or other named thing.",
    ExitCode.UNREACHABLE: "The server does not answer.",
    ExitCode.REFUSED: "A key or a token was refused, or is missing.",
    ExitCode.OFFLINE: "The network is needed and cannot be reached.",
    ExitCode.TOO_BIG: "There is not enough memory or disk.",
    ExitCode.CONFLICT: "It is in use, or exists already.",
    ExitCode.UNHEALTHY: "`mlxm doctor` found something to fix.",
    ExitCode.PORT_IN_USE: "Another program listens on the port.",
    ExitCode.CANNOT_WRITE: "A file cannot be written: it is read-only, or the disk is full.",
    ExitCode.HOME_IN_USE: "Another server holds this MLXM_HOME.",
    ExitCode.OPEN_WITHOUT_KEY: "The server refused to listen beyond this machine without a key.",
    ExitCode.INTERRUPTED: "It was ended by Ctrl-C.",
}

EXIT_CODES_BY_ERROR: dict[str, ExitCode] = {
    "internal_error": ExitCode.FAILED,
    "invalid_request": ExitCode.USAGE,
    "unsupported_parameter": ExitCode.USAGE,
    "context_length_exceeded": ExitCode.USAGE,
    "not_found": ExitCode.NOT_FOUND,
    "model_not_found": ExitCode.NOT_FOUND,
    "not_authenticated": ExitCode.REFUSED,
    "forbidden": ExitCode.REFUSED,
    "conflict": ExitCode.CONFLICT,
    "already_running": ExitCode.HOME_IN_USE,
    "port_in_use": ExitCode.PORT_IN_USE,
    "unavailable": ExitCode.FAILED,
    "overloaded": ExitCode.FAILED,
    "draining": ExitCode.FAILED,
    "out_of_memory": ExitCode.TOO_BIG,
    "worker_died": ExitCode.FAILED,
    "server_unreachable": ExitCode.UNREACHABLE,
    "timed_out": ExitCode.FAILED,
    "cancelled": ExitCode.INTERRUPTED,
    "offline": ExitCode.OFFLINE,
    "model_broken": ExitCode.FAILED,
    "config_invalid": ExitCode.BAD_CONFIG,
    "open_without_key": ExitCode.OPEN_WITHOUT_KEY,
    "store_failed": ExitCode.FAILED,
    "store_read_only": ExitCode.CANNOT_WRITE,
    "disk_full": ExitCode.CANNOT_WRITE,
    "secret_unreadable": ExitCode.FAILED,
    "protocol_mismatch": ExitCode.FAILED,
}

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON, and errors as JSON too.")]
JsonLinesFlag = Annotated[
    bool, typer.Option("--jsonl", help="Print a line of JSON for everything that happens, when it does.")
]
QuietFlag = Annotated[bool, typer.Option("--quiet", "-q", help="Print names alone, one per line.")]


def complete_model(incomplete: str) -> list[str]:
    """The names of models that the shell may offer."""
    from mlxm.settings.home import home_folder
    from mlxm.shelf import Shelf

    return [name for name in Shelf(home_folder()).names() if name.startswith(incomplete)]


ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A model's name, or an alias.", show_default=False, autocompletion=complete_model
    ),
]

# Nothing piped is ever cut: a table that no terminal shows may be as wide as its longest line.
_UNLIMITED_COLUMNS = 100_000
_MIN_WIDTH = 20


def exit_code_of(error: MlxmError) -> ExitCode:
    """The exit code for a failure."""
    return EXIT_CODES_BY_ERROR[error.code]


def print_json(value: Any) -> None:
    """Print one JSON document: structs, containers and plain values, with the keys in their own order."""
    import msgspec

    print_line(json.dumps(msgspec.to_builtins(value), indent=2, ensure_ascii=False))


def print_json_line(value: Any) -> None:
    """Print JSON on a line of its own, at once: for what goes on."""
    import msgspec

    print_line(json.dumps(msgspec.to_builtins(value, enc_hook=str), ensure_ascii=False))


def print_line(text: str) -> None:
    """Print a line of the result, at once: whoever reads a pipe may be waiting for it."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def print_note(text: str) -> None:
    """Tell the person something that is no result."""
    sys.stderr.write(f"{text}\n")


def print_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table: styled for a terminal, plain aligned columns that are never cut for a pipe."""
    cells = [list(headers), *([one_line(cell) for cell in row] for row in rows)]
    if is_styled(sys.stdout):
        print_rich(make_table(cells[0], cells[1:]))
    else:
        print_line("\n".join(align_columns(cells)))


def make_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table of rich's, without lines."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for header in headers:
        table.add_column(header, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def one_line(text: str) -> str:
    """A text without what a terminal would act on: names of files and models are others' words."""
    return text if text.isprintable() else "".join(each if each.isprintable() else "\ufffd" for each in text)


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Print names and what holds for them, indented and aligned; on a terminal wrapped beside the names."""
    pairs = list(facts)
    indent = max((len(name) for name, _ in pairs), default=0) + 4
    width = max(shutil.get_terminal_size().columns - indent, _MIN_WIDTH) if sys.stdout.isatty() else _UNLIMITED_COLUMNS
    for name, text in pairs:
        lines = textwrap.wrap(text, width, break_on_hyphens=False, break_long_words=False) if text else [""]
        padded = paint(f"{name:<{indent - 4}}", "1", sys.stdout)
        print_line(f"  {padded}  " + f"\n{'':<{indent}}".join(lines))


def print_text(text: str, *, is_markdown: bool = False) -> None:
    """Print a text of others as it is; a terminal gets it without what would act on it, and Markdown laid out."""
    if not sys.stdout.isatty():
        print_line(text.removesuffix("\n"))
        return
    harmless = "\n".join(map(one_line, text.expandtabs().removesuffix("\n").split("\n")))
    if not is_markdown:
        print_line(harmless)
        return
    from rich.markdown import Markdown

    print_rich(Markdown(harmless))


def print_rich(renderable: Any) -> None:
    """Print something of rich's to stdout, wrapped to the terminal where there is one."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else _UNLIMITED_COLUMNS
    Console(width=width, highlight=False, markup=False, soft_wrap=width is not None).print(renderable)


def align_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with every column but the last padded to its widest cell."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def print_error(code: str, message: str, hint: str | None, *, as_json: bool) -> None:
    """Say on stderr what went wrong and what to do, in words or as one JSON object."""
    if as_json:
        print_note(json.dumps({"error": {"code": code, "message": message, "hint": hint}}, ensure_ascii=False))
        return
    print_note(f"{paint('error:', '1;31', sys.stderr)} {message}")
    if hint is not None:
        print_note(f"{paint('hint:', '36', sys.stderr)} {hint}")


def is_styled(stream: IO[str]) -> bool:
    """Whether a stream is laid out for eyes: a terminal, or forced to be like one."""
    return bool(os.environ.get("FORCE_COLOR")) or stream.isatty()


def paint(text: str, style: str, stream: IO[str]) -> str:
    """`text` in an ANSI style where `stream` shows colours and they are wanted."""
    return f"\033[{style}m{text}\033[0m" if is_styled(stream) and not os.environ.get("NO_COLOR") else text
