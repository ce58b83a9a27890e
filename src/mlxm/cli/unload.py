"""`mlxm unload`: has the running server let models go."""

from __future__ import annotations

from typing import Annotated

import typer

from mlxm.cli.output import JsonFlag, complete_model, print_json, print_line
from mlxm.cli.pool import footer_of, need_server
from mlxm.errors import InvalidRequest

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(epilog="\b\nExamples:\n  mlxm unload mlxm/tiny\n  mlxm unload --all --now")
def unload(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]", help="A model's name, or an alias.", show_default=False, autocompletion=complete_model
        ),
    ] = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="All that are loaded.")] = False,
    now: Annotated[bool, typer.Option("--now", help="Cancel what they run, instead of waiting for it.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Let a model go, and wait until its memory is free."""
    if (name is None) != every:
        raise InvalidRequest("Name a model, or give --all.", hint="`mlxm ps` lists what is loaded.")
    with need_server() as server:
        pool = server.unload(name, now=now)
    if as_json:
        print_json(pool)
    else:
        print_line(f"{'Every model' if name is None else name} is unloaded: {footer_of(pool)}")
