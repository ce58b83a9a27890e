"""`mlxm rm`: removes models from the disk, each with the folder that is its own."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import typer

from mlxm.cli.asking import DryRunFlag, YesFlag, confirm
from mlxm.cli.figures import count_of, show_bytes, show_path
from mlxm.cli.finding import find_model
from mlxm.cli.installed import as_plain
from mlxm.cli.output import JsonFlag, complete_model, print_json, print_line, print_note
from mlxm.settings.home import home_folder
from mlxm.shelf import Shelf
from mlxm.store.look import DATABASE_NAME
from mlxm.upkeep.removal import Removal, plan_removal, remove

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(
    epilog="\b\nExamples:\n  mlxm rm mlx-community/Qwen3-4B-4bit\n  mlxm rm --dry-run mlx-community/Qwen3-4B-4bit\n"
    "  mlxm ls -q --filter 'used>90d' | xargs mlxm rm -y"
)
def rm(
    names: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="Names or aliases.", show_default=False, autocompletion=complete_model),
    ],
    *,
    yes: YesFlag = False,
    dry_run: DryRunFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Remove models from the disk.

    A folder that was imported is only forgotten; its files stay as they are.
    """
    shelf = Shelf(home_folder())
    models = {model.id: model for model in (find_model(shelf, name) for name in names)}
    roots = shelf.roots()
    plans = [plan_removal(model, roots) for model in models.values()]
    if not as_json or not (yes or dry_run):
        _announce(plans, shelf)
    if not dry_run:
        confirm(f"Remove {count_of(len(plans), 'model')}?", yes=yes)
        plans = [plan_removal(model, roots) for model in models.values()]  # one may be fetched by now
        for plan in plans:
            _carry_out(plan, shelf.home)
        _warn_of_aliases(shelf, models)
    if as_json:
        print_json([{**as_plain(plan), "removed": not dry_run} for plan in plans])
    elif not dry_run:
        print_line(f"Removed {count_of(len(plans), 'model')}, {show_bytes(sum(plan.freed_bytes for plan in plans))}.")


def _announce(plans: list[Removal], shelf: Shelf) -> None:
    """What is about to go."""
    for plan in plans:
        if plan.forgotten is not None:
            print_note(f"{plan.id}: forget {show_path(plan.forgotten)}, and leave its files")
            others = _others_in(plan.forgotten, plan.id, shelf)
            if others:
                print_note(f"Forgotten with it, for they are in that folder: {', '.join(others)}")
        elif plan.folder is not None:
            print_note(f"{plan.id}: {show_bytes(plan.freed_bytes)} in {show_path(plan.folder)}")


def _others_in(folder: Path, name: str, shelf: Shelf) -> list[str]:
    """Models that are known by the same imported folder."""
    models = shelf.scan().models
    found = {model.id for model in models if model.source == "import" and model.path.is_relative_to(folder)}
    return sorted(found - {name})


def _carry_out(plan: Removal, home: Path) -> None:
    if plan.forgotten is not None:
        asyncio.run(_forget(plan.forgotten, home))
    else:
        remove(plan)


def _warn_of_aliases(shelf: Shelf, gone: Collection[str]) -> None:
    """Names that lead nowhere now."""
    for name, target in shelf.aliases().items():
        if target in gone:
            print_note(f"The alias {name} leads nowhere now. To forget it: mlxm alias rm {name}")


async def _forget(folder: Path, home: Path) -> None:
    from mlxm.store.db import Database
    from mlxm.store.imports import Imports

    async with await Database.open(home / DATABASE_NAME) as db:
        await Imports(db).remove(folder)
