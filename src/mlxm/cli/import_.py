"""`mlxm import`: lets a folder of the user's own be a model."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from mlxm.catalog.local import LocalModel, LocalModels, Roots
from mlxm.cli.installed import as_plain
from mlxm.cli.output import JsonFlag, print_json, print_line, print_note
from mlxm.errors import InvalidRequest
from mlxm.settings.home import home_folder
from mlxm.shelf import Shelf
from mlxm.store.look import DATABASE_NAME

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command("import", epilog="Example: mlxm import ~/models/my-finetune --alias mine")
def import_(
    path: Annotated[
        Path, typer.Argument(help="A folder with config.json and *.safetensors, or one of such.", show_default=False)
    ],
    *,
    alias: Annotated[str | None, typer.Option(help="Another name for the model.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Use a folder of your own as a model.

    Nothing is copied: the folder stays where it is, and `mlxm rm` only forgets it.
    """
    shelf = Shelf(home_folder())
    folder = path.expanduser().resolve()
    models = find_models(shelf.home, folder)
    if alias is not None and len(models) > 1:
        raise InvalidRequest(f"{folder} holds {len(models)} models.", hint="Give each an alias with: mlxm alias set")
    asyncio.run(_add(folder, shelf.home))
    if alias is not None:
        from mlxm.cli.alias import set_alias

        set_alias(shelf, alias, models[0].id)
    if as_json:
        print_json([as_plain(model) for model in models])
        return
    for model in models:
        print_line(f"{model.id}  {model.path}")
        if model.state != "ready":
            print_note(f"{model.id} is {model.state}: {model.state_reason}")
        elif not model.runnable:
            print_note(f"{model.id} is unsupported: {model.runnable_reason}")
    print_note(f"next: mlxm show {models[0].id if alias is None else alias}")


def find_models(home: Path, folder: Path) -> tuple[LocalModel, ...]:
    """The models in a folder; InvalidRequest when there is none."""
    if not folder.is_dir():
        raise InvalidRequest(f"{folder} is no folder.", param="path")
    nowhere = folder / ".no-hub-cache"
    listing = LocalModels(Roots(home=home, hub_cache=nowhere, imported=(folder,))).scan()
    models = tuple(model for model in listing.models if model.source == "import")
    if not models:
        reasons = f" {' '.join(listing.problems)}" if listing.problems else ""
        raise InvalidRequest(
            f"{folder} holds no model.{reasons}", hint="Name the folder that config.json is in.", param="path"
        )
    return models


async def _add(folder: Path, home: Path) -> None:
    from mlxm.store.db import Database
    from mlxm.store.imports import Imports

    async with await Database.open(home / DATABASE_NAME) as db:
        await Imports(db).add(folder)
