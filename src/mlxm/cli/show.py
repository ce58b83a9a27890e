"""`mlxm show`: everything that is known of one model on this machine."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from mlxm.cli import machine
from mlxm.cli.facts import describe_model
from mlxm.cli.figures import show_bytes
from mlxm.cli.filters import read_tokens
from mlxm.cli.finding import find_model
from mlxm.cli.installed import Installed, as_plain, estimate_at, is_on_its_way, judge, usual_context
from mlxm.cli.machine import Machine
from mlxm.cli.model_texts import ModelFile, list_files, read_card, read_template
from mlxm.cli.output import JsonFlag, ModelArgument, print_facts, print_json, print_line, print_table, print_text
from mlxm.errors import InvalidRequest
from mlxm.settings.home import home_folder
from mlxm.shelf import Shelf

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(
    epilog="\b\nExamples:\n  mlxm show mlxm/tiny\n  mlxm show mlxm/tiny --memory 32k\n  mlxm show mlxm/tiny --template"
)
def show(
    name: ModelArgument,
    *,
    memory: Annotated[
        str | None, typer.Option(metavar="CTX", help="Say what it takes with this much context, such as 32k or max.")
    ] = None,
    template: Annotated[bool, typer.Option("--template", help="Print its chat template alone.")] = False,
    files: Annotated[bool, typer.Option("--files", help="List its files and their sizes.")] = False,
    card: Annotated[bool, typer.Option("--card", help="Print its model card alone.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show what a model on this machine is, and what it takes to run it."""
    if template + files + card > 1:
        raise InvalidRequest("--template, --files and --card exclude one another.", hint="Give one of them.")
    here = machine.read_machine()
    shelf = Shelf(home_folder())
    model = find_model(shelf, name)
    found = Installed.of(model, here, is_being_fetched=is_on_its_way(shelf, model))
    folder = model.path
    if template:
        _print_text("template", read_template(folder, model.id), is_markdown=False, as_json=as_json)
    elif card:
        _print_text("card", read_card(folder, model.id), is_markdown=True, as_json=as_json)
    elif files:
        _print_files(list_files(folder), as_json=as_json)
    else:
        _print_model(found, memory, here, as_json=as_json)


def _print_model(found: Installed, asked: str | None, here: Machine, *, as_json: bool) -> None:
    context = usual_context(found.model.characteristics) if asked is None else _read_context(asked, found)
    memory = estimate_at(found.model, context)
    judged = replace(found, memory=memory, fits=judge(memory, here))
    if as_json:
        print_json({**judged.as_json(), "largest_context": judged.largest_context(here)})
        return
    print_line(judged.model.id)
    print_facts(describe_model(judged, here))


def _read_context(text: str, found: Installed) -> int | None:
    """The context to take into account; `max` is all that the model can see."""
    if text == "max":
        return found.context_length
    try:
        return int(read_tokens(text))
    except (ValueError, KeyError) as error:
        raise InvalidRequest(f"--memory {text!r} is no length of a context.", hint="Write 8192, 32k or max.") from error


def _print_text(field: str, text: str, *, is_markdown: bool, as_json: bool) -> None:
    if as_json:
        print_json({field: text})
    else:
        print_text(text, is_markdown=is_markdown)


def _print_files(files: list[ModelFile], *, as_json: bool) -> None:
    if as_json:
        print_json([as_plain(file) for file in files])
    else:
        print_table(["FILE", "SIZE"], [(file.path, show_bytes(file.size_bytes)) for file in files])
