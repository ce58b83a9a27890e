"""`mlxm ls`: the models on this machine's disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from mlxm.cli import machine
from mlxm.cli.columns import print_columns
from mlxm.cli.figures import count_of, show_bytes, show_path
from mlxm.cli.filters import Field, choose, order, read_age, read_count, read_size, read_tokens
from mlxm.cli.installed import EXPENDABLE, HEADERS, Installed, is_on_its_way
from mlxm.cli.output import JsonFlag, QuietFlag, print_json, print_line, print_note
from mlxm.settings.home import home_folder
from mlxm.shelf import Shelf
from mlxm.tiny import BUILTIN_NOTE

app = typer.Typer(add_completion=False, rich_markup_mode=None)

FIELDS: Mapping[str, Field[Installed]] = {
    "model": Field(lambda each: each.model.id),
    "size": Field(lambda each: each.model.size_bytes, read_size),
    "disk": Field(lambda each: each.model.disk_bytes, read_size),
    "ctx": Field(lambda each: each.context_length, read_tokens),
    "params": Field(lambda each: each.parameters, read_count),
    "task": Field(lambda each: each.task),
    "quant": Field(lambda each: each.quantisation),
    "family": Field(lambda each: each.family),
    "tools": Field(lambda each: each.tool_use),
    "fits": Field(lambda each: each.fits),
    "state": Field(lambda each: each.state),
    "source": Field(lambda each: each.model.source),
    "used": Field(lambda each: each.age_s, read_age),
}


@app.command(
    epilog="\b\nExamples:\n  mlxm ls\n  mlxm ls --filter 'size>4GB' --filter fits=yes --sort size:desc\n"
    "  mlxm ls -q | xargs -n 1 mlxm verify"
)
def ls(
    *,
    filters: Annotated[
        list[str] | None,
        typer.Option("--filter", help=f"Show only these: a field, a sign and a value. Fields: {', '.join(FIELDS)}."),
    ] = None,
    sort: Annotated[str, typer.Option(help="A field to order by; :desc turns it round.")] = "model",
    quiet: QuietFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """List the models on this machine."""
    shelf = Shelf(home_folder())
    here = machine.read_machine()
    listing = shelf.scan()
    found = [Installed.of(model, here, is_being_fetched=is_on_its_way(shelf, model)) for model in listing.models]
    shown = order(choose(found, [] if filters is None else filters, FIELDS), sort, FIELDS)
    if as_json:
        print_json([each.as_json() for each in shown])
    elif quiet:
        for each in shown:
            print_line(each.model.id)
    else:
        print_columns(HEADERS, [each.row() for each in shown], expendable=EXPENDABLE)
        print_note(_footer(shown, _places(shelf)))
    for problem in listing.problems:
        print_note(f"warning: {problem}")


def _footer(shown: Sequence[Installed], places: Sequence[Path]) -> str:
    """How many there are, and what they take."""
    if [each.model.source for each in shown] == ["builtin"]:
        return f"Only the built-in model is here. Find others with: mlxm search qwen\n{BUILTIN_NOTE}"
    total_bytes = sum(each.model.disk_bytes for each in shown)
    where = ", ".join(map(show_path, places))
    return f"{count_of(len(shown), 'model')} · {show_bytes(total_bytes)} in {where}"


def _places(shelf: Shelf) -> list[Path]:
    """The folders that models are looked for in."""
    roots = shelf.roots()
    lmstudio = [] if roots.lmstudio is None else [roots.lmstudio]
    return [roots.hub_cache, *lmstudio, *roots.imported]
