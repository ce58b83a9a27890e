"""`mlxm import`: lets a folder of the user's own be a model."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from mlxm.catalog.local import LocalModel
from mlxm.checkpoint.safetensors import weight_files
from mlxm.cli.installed import as_plain
from mlxm.cli.output import JsonFlag, print_json, print_line, print_note
from mlxm.errors import InvalidRequest, ModelNotFound
from mlxm.settings.home import home_folder
from mlxm.shelf import Shelf
from mlxm.store.look import DATABASE_NAME

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command("import", epilog="Example: mlxm import ~/models/my-finetune --alias mine")
def import_(
    path: Annotated[Path, typer.Argument(help="A folder with config.json and *.safetensors.", show_default=False)],
    *,
    alias: Annotated[str | None, typer.Option(help="Another name for it.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Use a folder of your own as a model.

    Nothing is copied: the folder stays where it is, and `mlxm rm` only forgets it.
    """
    folder = check_folder(path)
    shelf = Shelf(home_folder())
    asyncio.run(_add(folder, shelf.home))
    model = find_imported(shelf, folder)
    if alias is not None:
        from mlxm.cli.alias import set_alias

        set_alias(shelf, alias, model.id)
    if as_json:
        print_json(as_plain(model))
        return
    print_line(f"{model.id} is {folder}")
    print_note(f"next: mlxm show {model.id if alias is None else alias}")


def check_folder(path: Path) -> Path:
    """The folder itself; InvalidRequest or ModelBroken when there is no model in it."""
    folder = path.expanduser().resolve()
    if not folder.is_dir():
        raise InvalidRequest(f"{folder} is no folder.", param="path")
    if not (folder / "config.json").is_file():
        raise InvalidRequest(
            f"{folder} holds no model: it has no config.json.", hint="Name the folder that config.json is in."
        )
    weight_files(folder)
    return folder


def find_imported(shelf: Shelf, folder: Path) -> LocalModel:
    """The model that an imported folder has become."""
    for model in shelf.scan().models:
        if model.source == "import" and model.path.resolve() == folder:
            return model
    raise ModelNotFound(
        f"{folder} is imported, but another model has its name.", hint="Rename the folder and import it again."
    )


async def _add(folder: Path, home: Path) -> None:
    from mlxm.store.db import Database
    from mlxm.store.imports import Imports

    async with await Database.open(home / DATABASE_NAME) as db:
        await Imports(db).add(folder)
