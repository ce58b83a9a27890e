"""`mlxm prune`: gives back the space of what no model needs."""

from __future__ import annotations

import typer

from mlxm.cli.asking import DryRunFlag, YesFlag, confirm
from mlxm.cli.columns import print_columns
from mlxm.cli.figures import count_of, show_bytes
from mlxm.cli.installed import as_plain
from mlxm.cli.output import JsonFlag, print_json, print_line, print_note
from mlxm.settings.home import home_folder
from mlxm.shelf import Shelf
from mlxm.upkeep.leftovers import Leftover, find_leftovers, remove_leftover

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(epilog="\b\nExamples:\n  mlxm prune --dry-run\n  mlxm prune -y")
def prune(*, yes: YesFlag = False, dry_run: DryRunFlag = False, as_json: JsonFlag = False) -> None:
    """Remove unfinished downloads, and revisions that nothing leads to.

    What is being downloaded now is left alone. An incomplete model is listed too: `mlxm pull` would go on from there.
    """
    shelf = Shelf(home_folder())
    hub_cache = shelf.roots().hub_cache
    found = find_leftovers(hub_cache)
    total = sum(each.size_bytes for each in found)
    if found and not as_json:
        rows = [(each.what, each.name, each.path.name, show_bytes(each.size_bytes)) for each in found]
        print_columns(["WHAT", "MODEL", "NAME", "SIZE"], rows, expendable=["NAME"])
    if found and not dry_run:
        confirm(f"Remove {count_of(len(found), 'thing')}, {show_bytes(total)}?", yes=yes)
        still = set(find_leftovers(hub_cache))  # somebody may have gone on with a download meanwhile
        found = tuple(each for each in found if each in still)
        total = sum(each.size_bytes for each in found)
        for each in found:
            remove_leftover(each, hub_cache)
    if as_json:
        print_json([{**as_plain(each), "removed": not dry_run} for each in found])
    else:
        _tell(found, total, dry_run=dry_run)


def _tell(found: tuple[Leftover, ...], total: int, *, dry_run: bool) -> None:
    if not found:
        print_note("There is nothing to remove.")
    elif dry_run:
        print_note(f"{show_bytes(total)} could be freed.")
    else:
        print_line(f"Freed {show_bytes(total)}.")
