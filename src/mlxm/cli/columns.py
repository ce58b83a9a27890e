"""Tables with many columns: all of them in a pipe, on a terminal those that there is room for."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlxm.cli.output import make_table, print_table

if TYPE_CHECKING:
    from rich.table import Table

_GAP = 2


def print_columns(headers: Sequence[str], rows: Sequence[Sequence[str]], *, expendable: Sequence[str]) -> None:
    """Print a table; a terminal too narrow for it does without `expendable` columns, the first of them first."""
    if sys.stdout.isatty():
        headers, rows = narrowed(headers, rows, expendable)
    print_table(headers, rows)


def columns_table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, expendable: Sequence[str]) -> Table:
    """The same for something that is drawn again and again."""
    return make_table(*narrowed(headers, rows, expendable))


def narrowed(
    headers: Sequence[str], rows: Sequence[Sequence[str]], expendable: Sequence[str]
) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """What of a table this terminal has room for."""
    shown = fitting(headers, rows, expendable, shutil.get_terminal_size().columns)
    places = [headers.index(header) for header in shown]
    return shown, [[row[place] for place in places] for row in rows]


def fitting(headers: Sequence[str], rows: Sequence[Sequence[str]], expendable: Sequence[str], width: int) -> list[str]:
    """The columns that fit side by side in `width`, as far as those that are expendable can help."""
    widths = {
        header: max(len(cell) for cell in (header, *(row[place] for row in rows)))
        for place, header in enumerate(headers)
    }
    shown = list(headers)
    for header in expendable:
        if sum(widths[name] for name in shown) + _GAP * (len(shown) - 1) <= width:
            break
        shown.remove(header)
    return shown
