"""`mlxm pull`: brings a model here; a running server does it where there is one, so that everybody sees it."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from mlxm.cli import machine
from mlxm.cli.asking import DryRunFlag
from mlxm.cli.figures import show_bytes, show_duration, show_tokens
from mlxm.cli.installed import Installed, as_plain
from mlxm.cli.output import ExitCode, JsonFlag, JsonLinesFlag, paint, print_json, print_line, print_note, print_table
from mlxm.cli.progress_line import ProgressLine
from mlxm.errors import InvalidRequest, ModelNotFound, ServerUnreachable
from mlxm.settings.home import home_folder
from mlxm.shelf import Shelf

if TYPE_CHECKING:
    from mlxm.cli.fetching import Order, Outlook
    from mlxm.cli.machine import Machine
    from mlxm.downloads import Progress
    from mlxm.remote import Remote

app = typer.Typer(add_completion=False, rich_markup_mode=None)

_SHOWN_OF_COMMIT = 8


@app.command(
    epilog="\b\nExamples:\n  mlxm pull mlx-community/Qwen3-4B-4bit --alias small\n"
    "  mlxm pull mlx-community/Qwen3-4B-4bit --dry-run"
)
def pull(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="A model on the Hub, or an alias.", show_default=False)],
    *,
    revision: Annotated[str | None, typer.Option(help="A branch, a tag or a commit.")] = None,
    include: Annotated[list[str] | None, typer.Option(help="Fetch only files like this, such as '*.json'.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Fetch no files like this.")] = None,
    dry_run: DryRunFlag = False,
    alias: Annotated[str | None, typer.Option(help="Another name for the model.")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Leave it to the running server, and do not wait.")] = False,
    here: Annotated[bool, typer.Option("--here", help="Fetch in this process, also when a server is running.")] = False,
    cancel: Annotated[bool, typer.Option("--cancel", help="End what the running server fetches of it.")] = False,
    as_lines: JsonLinesFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Download a model from the Hub, and verify it.

    Ctrl-C ends it. Whole files are kept, and the same command goes on from there; a file that was not whole starts
    again.
    """
    from mlxm.cli.fetching import Order, cancel_there, hand_over

    shelf = Shelf(home_folder())
    order = Order(
        name=shelf.aliases().get(name, name),
        revision=revision,
        include=() if include is None else tuple(include),
        exclude=() if exclude is None else tuple(exclude),
    )
    if dry_run + cancel + detach + here > 1:
        raise InvalidRequest("--dry-run, --cancel, --detach and --here exclude one another.", hint="Give one of them.")
    if alias is not None:
        from mlxm.cli.alias import refuse_alias

        refuse_alias(shelf, alias, order.name)  # better now than when the model is here
    if dry_run:
        _look_ahead(order, as_json=as_json)
    elif cancel:
        with _find_server(shelf) as server:
            _tell_handled(cancel_there(server, order.name), "is cancelled", as_json=as_json)
    elif detach:
        with _find_server(shelf) as server:
            _tell_handled((hand_over(server, order),), "is left to the server", as_json=as_json)
        _give_alias(shelf, alias, order.name)
    else:
        _pull(shelf, order, alias, ProgressLine(as_lines=as_lines, is_quiet=as_json), is_here=here, as_json=as_json)


def _pull(shelf: Shelf, order: Order, alias: str | None, line: ProgressLine, *, is_here: bool, as_json: bool) -> None:
    """Fetch, wait for it, and tell the end of it."""
    from mlxm.catalog.hub import HubOptions
    from mlxm.cli.fetching import explain_refusal
    from mlxm.remote import find_server

    is_offline = HubOptions.from_environ(os.environ).offline  # the server may not be, and must not be used then
    server = None if is_here or is_offline else find_server(shelf.home)
    began_s = time.monotonic()
    with nullcontext() if server is None else server:
        done = _fetch(order, server, line)
    if done.error is not None:
        raise done.error.error() if server is None else explain_refusal(done.error.error(), order.name)
    _give_alias(shelf, alias, done.name)
    if as_json:
        print_json(as_plain(done))
    elif not line.is_for_programs:
        _tell_done(shelf, done, time.monotonic() - began_s, server)


def _give_alias(shelf: Shelf, alias: str | None, name: str) -> None:
    if alias is None:
        return
    from mlxm.cli.alias import set_alias

    set_alias(shelf, alias, name)


def _find_server(shelf: Shelf) -> Remote:
    from mlxm.remote import find_server

    server = find_server(shelf.home)
    if server is None:
        raise ServerUnreachable("No server is running.", hint="Start one with: mlxm serve")
    return server


def _fetch(order: Order, server: Remote | None, line: ProgressLine) -> Progress:
    """Fetch where it is to be done; Ctrl-C is told what it means."""
    from mlxm.cli.fetching import LeftRunning, fetch_here, fetch_there

    try:
        with line:
            return (
                asyncio.run(fetch_here(order, line.show)) if server is None else fetch_there(server, order, line.show)
            )
    except LeftRunning:
        print_note(f"The server goes on with it. To end it: mlxm pull {order.name} --cancel")
        raise
    except KeyboardInterrupt:
        print_note(f"Cancelled. Whole files are kept; to go on from there: mlxm pull {order.name}")
        raise


def _tell_handled(jobs: tuple[Progress, ...], what: str, *, as_json: bool) -> None:
    """What became of downloads that nobody waits for."""
    if as_json:
        print_json([as_plain(job) for job in jobs])
        return
    for job in jobs:
        print_line(f"{job.id}  {job.name} {what}")


def _tell_done(shelf: Shelf, done: Progress, took_s: float, server: Remote | None) -> None:
    """What has come, and what to do with it."""
    total = 0 if done.total_bytes is None else done.total_bytes
    how = "was here already" if done.fetched_bytes == 0 else f"in {show_duration(took_s)}"
    commit = "" if done.commit is None else f" @ {done.commit[:_SHOWN_OF_COMMIT]}"
    if done.renamed_from is not None:
        print_note(f"{done.renamed_from} is called {done.name} now.")
    print_line(f"{paint('✓', '32', sys.stdout)} {done.name}{commit}  {show_bytes(total)} {how}")
    try:
        model = shelf.find(done.name)
    except ModelNotFound:  # the server's HF_HOME is another one
        print_note(f"The server keeps it where this command does not look: {done.path}")
        return
    if model.state != "ready":
        print_note(f"It is {model.state} as it is: {model.state_reason}")
    elif not model.runnable:
        print_note(f"mlxm cannot run it: {model.runnable_reason}")
    elif Installed.of(model, machine.read_machine()).fits == "no":
        print_note(f"It is larger than the memory that models may take here: mlxm show {done.name}")
    elif server is None:
        print_note("next: mlxm serve")
    else:
        print_note(f"next: ask for {done.name} at {server.url}/v1")


def _look_ahead(order: Order, *, as_json: bool) -> None:
    """Tell what would happen; it ends with 8 when the disk has no room for it."""
    from mlxm.cli.fetching import look_ahead

    here = machine.read_machine()
    outlook = asyncio.run(look_ahead(order, here))
    plan = outlook.plan
    if as_json:
        print_json(outlook.as_json())
    else:
        rows = [
            (each.path, show_bytes(each.size_bytes), "here" if each.is_present else "to fetch") for each in plan.files
        ]
        print_table(["FILE", "SIZE", "STATE"], rows)
        print_note(
            f"{plan.name} @ {plan.commit[:_SHOWN_OF_COMMIT]}: {show_bytes(plan.needed_bytes)} to fetch of "
            f"{show_bytes(plan.total_bytes)}; the disk has {show_bytes(plan.free_bytes)} free."
        )
        print_note(_memory(outlook, here))
    if not plan.has_room:
        print_note(f"That is too little: {show_bytes(plan.margin_bytes)} are to stay free.")
        raise typer.Exit(ExitCode.TOO_BIG)


def _memory(outlook: Outlook, here: Machine) -> str:
    memory = outlook.memory
    if memory is None:
        return "What memory it would take is not known."
    at = "" if memory.context is None else f" with {show_tokens(memory.context)} of context"
    verdict = "fits" if outlook.fits == "yes" else "does not fit"
    return (
        f"It takes {show_bytes(memory.total_bytes)}{at}, which {verdict} into the {show_bytes(here.budget_bytes)} here."
    )
