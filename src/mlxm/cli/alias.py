"""`mlxm alias`: names of the user's own for models."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from mlxm.cli.finding import find_model
from mlxm.cli.installed import as_plain
from mlxm.cli.output import JsonFlag, QuietFlag, complete_model, print_json, print_line, print_note, print_table
from mlxm.settings.home import home_folder
from mlxm.shelf import Shelf
from mlxm.store.look import DATABASE_NAME

if TYPE_CHECKING:
    from mlxm.store.aliases import Alias, Aliases

T = TypeVar("T")

app = typer.Typer(
    help="Give models names of your own.", no_args_is_help=True, rich_markup_mode=None, add_completion=False
)


@app.command("set", epilog="Example: mlxm alias set small mlx-community/Qwen3-4B-4bit")
def set_(
    name: Annotated[str, typer.Argument(help="The new name.", show_default=False)],
    target: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="What it stands for.", show_default=False, autocompletion=complete_model),
    ],
    *,
    as_json: JsonFlag = False,
) -> None:
    """Let a name stand for a model; an alias of that name is replaced."""
    shelf = Shelf(home_folder())
    alias = set_alias(shelf, name, find_model(shelf, target).id)
    if as_json:
        print_json(as_plain(alias))
    else:
        print_line(f"{alias.name} is {alias.target}")


@app.command(epilog="Example: mlxm alias ls")
def ls(*, quiet: QuietFlag = False, as_json: JsonFlag = False) -> None:
    """List the aliases."""
    found = Shelf(home_folder()).aliases()
    if as_json:
        print_json([{"name": name, "target": target} for name, target in found.items()])
    elif quiet:
        for name in found:
            print_line(name)
    elif found:
        print_table(["ALIAS", "MODEL"], list(found.items()))
    else:
        print_note("There are no aliases. Make one with: mlxm alias set NAME MODEL")


@app.command(epilog="Example: mlxm alias rm small")
def rm(name: Annotated[str, typer.Argument(help="The alias.", show_default=False)]) -> None:
    """Forget an alias; the model stays."""
    _with_aliases(home_folder(), lambda aliases: aliases.remove(name))
    print_note(f"{name} is forgotten.")


def set_alias(shelf: Shelf, name: str, target: str) -> Alias:
    """Write an alias; InvalidRequest for a bad name, Conflict when it would hide a model."""
    installed = set(shelf.names()) - set(shelf.aliases())
    return _with_aliases(shelf.home, lambda aliases: aliases.set(name, target, installed=installed))


def refuse_alias(shelf: Shelf, name: str, target: str) -> None:
    """Raise now what set_alias would raise once the model `target` is here."""
    from mlxm.store.aliases import check_alias

    aliases = shelf.aliases()
    check_alias(name, target, known=aliases, installed={*shelf.names(), target} - set(aliases))


def _with_aliases(home: Path, work: Callable[[Aliases], Awaitable[T]]) -> T:
    """Open the database for one thing."""
    from mlxm.store.aliases import Aliases
    from mlxm.store.db import Database

    async def run() -> T:
        async with await Database.open(home / DATABASE_NAME) as db:
            return await work(Aliases(db))

    return asyncio.run(run())
