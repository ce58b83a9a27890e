"""`mlxm stop`: ends the running server."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from typing import Annotated

import typer

from mlxm.cli.output import print_line, print_note
from mlxm.errors import ServerUnreachable
from mlxm.settings.home import home_folder
from mlxm.store.lock import home_status

app = typer.Typer(add_completion=False, rich_markup_mode=None)

_POLL_S = 0.05
_NOTE_S = 1.0


@app.command(epilog="Example: mlxm stop")
def stop(
    *,
    now: Annotated[bool, typer.Option("--now", help="Cut requests short, instead of letting them finish.")] = False,
) -> None:
    """Stop the server, and wait until it has ended."""
    home = home_folder()
    pid = home_status(home).pid
    if pid is None:
        raise ServerUnreachable("No server is running.", hint="Start one with: mlxm serve")
    with suppress(ProcessLookupError):  # it ends by itself
        os.kill(pid, signal.SIGTERM)
        if now:
            time.sleep(_POLL_S)
            os.kill(pid, signal.SIGTERM)
    noted_s = time.monotonic() + _NOTE_S
    while home_status(home).pid == pid:
        time.sleep(_POLL_S)
        if time.monotonic() > noted_s:
            noted_s = float("inf")
            print_note("It lets its requests finish first; `mlxm stop --now` does not.")
    print_line(f"The server (pid {pid}) has ended.")
