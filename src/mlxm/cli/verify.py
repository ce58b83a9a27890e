"""`mlxm verify`: reads a model's files, and says which of them are not what they should be."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from mlxm.catalog.local import LocalModel
from mlxm.cli.figures import count_of, show_bytes
from mlxm.cli.finding import find_model
from mlxm.cli.installed import as_plain
from mlxm.cli.output import JsonFlag, ModelArgument, print_json, print_line, print_table
from mlxm.errors import ModelBroken
from mlxm.settings.home import home_folder
from mlxm.shelf import Shelf
from mlxm.upkeep.checking import FileCheck, check_files, total_bytes

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(epilog="Example: mlxm verify mlxm/tiny")
def verify(name: ModelArgument, *, as_json: JsonFlag = False) -> None:
    """Check a model's files: sizes, hashes where they are known, and the headers of its weights.

    Nothing is asked of the network. The Hub's cache keeps contents under their hashes, which makes its check complete.
    """
    model = find_model(Shelf(home_folder()), name)
    with _progress(model) as report:
        checks = list(check_files(model, report))
    bad = [check for check in checks if check.problem is not None]
    if as_json:
        print_json([as_plain(check) for check in checks])
    else:
        print_table(["FILE", "SIZE", "BY", "RESULT"], [_row(check) for check in checks])
    reason = _complaint(model, bad)
    if reason is not None:
        raise ModelBroken(reason, hint=_remedy(model))
    if not as_json:
        print_line(f"{model.id} is whole: {count_of(len(checks), 'file')}, {show_bytes(model.size_bytes)}.")


def _row(check: FileCheck) -> tuple[str, ...]:
    result = "ok" if check.problem is None else check.problem
    return check.path, show_bytes(check.size_bytes), check.basis, result


def _complaint(model: LocalModel, bad: list[FileCheck]) -> str | None:
    """What is wrong with the model as a whole."""
    if bad:
        return f"{model.id} is damaged: {', '.join(check.path for check in bad)}."
    return None if model.state == "ready" else f"{model.id} is {model.state}: {model.state_reason}"


def _remedy(model: LocalModel) -> str:
    return f"mlxm pull {model.id}" if model.source == "hub" else "Put a good copy of these files in their place."


@contextmanager
def _progress(model: LocalModel) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, for hashing takes a while; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = ("reading", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("reading", total=total_bytes(model))
        yield lambda num_bytes: progress.advance(task, num_bytes)
