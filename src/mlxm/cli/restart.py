"""`mlxm restart`: has the running server replace a model's process."""

from __future__ import annotations

from typing import Annotated

import typer

from mlxm.cli.output import JsonFlag, ModelArgument, print_json, print_line
from mlxm.cli.pool import need_server, wait_loaded

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(epilog="Example: mlxm restart mlxm/tiny")
def restart(
    name: ModelArgument,
    *,
    now: Annotated[bool, typer.Option("--now", help="Cancel what it runs, instead of letting it finish.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Start a loaded model anew, also one that is broken."""
    with need_server() as server:
        row = wait_loaded(server, server.restart(name, now=now))
    if as_json:
        print_json(row)
    else:
        print_line(f"{row.model} runs in a new process: {row.pid}")
