"""`mlxm ps`: which models are loaded, and how they are doing."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from mlxm.cli.columns import columns_table, print_columns
from mlxm.cli.output import JsonFlag, print_json, print_note
from mlxm.cli.pool import EXPENDABLE, HEADERS, cells_of, footer_of, need_server

if TYPE_CHECKING:
    from rich.console import Group

    from mlxm.pool.status import PoolStatus
    from mlxm.remote import Remote

app = typer.Typer(add_completion=False, rich_markup_mode=None)

_PERIOD_S = 1.0


@app.command(epilog="\b\nExamples:\n  mlxm ps\n  mlxm ps --watch\n  mlxm ps --json")
def ps(
    *,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every second, until Ctrl-C.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show which models are loaded."""
    with need_server() as server:
        if watch and sys.stdout.isatty() and not as_json:
            _watch(server)
        elif watch:
            _repeat(server, as_json=as_json)
        else:
            _print(server.pool(), as_json=as_json)


def _print(pool: PoolStatus, *, as_json: bool) -> None:
    if as_json:
        print_json(pool)
        return
    if pool.models:
        print_columns(HEADERS, [cells_of(row) for row in pool.models], expendable=EXPENDABLE)
        for row in pool.models:
            if row.reason is not None:
                print_note(f"{row.model}: {row.reason}")
    else:
        print_note("No model is loaded. The first request for one loads it.")
    print_note(footer_of(pool))


def _repeat(server: Remote, *, as_json: bool) -> None:
    """For pipes: one table, or one JSON document, after another."""
    while True:
        _print(server.pool(), as_json=as_json)
        time.sleep(_PERIOD_S)


def _watch(server: Remote) -> None:
    """On a terminal: the same place again."""
    from rich.live import Live

    with Live(_picture(server.pool()), auto_refresh=False, transient=False) as live:
        while True:
            time.sleep(_PERIOD_S)
            live.update(_picture(server.pool()), refresh=True)


def _picture(pool: PoolStatus) -> Group:
    from rich.console import Group
    from rich.text import Text

    table = columns_table(HEADERS, [cells_of(row) for row in pool.models], expendable=EXPENDABLE)
    return Group(table, Text(footer_of(pool)))
