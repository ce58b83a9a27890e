"""`mlxm serve`: the server in the foreground, and the lines to paste into whatever should use it."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from mlxm.cli.output import ExitCode, JsonFlag, print_json, print_line, print_note
from mlxm.errors import MlxmError

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(epilog="Example: mlxm serve --port 8080")
def serve(
    *,
    host: Annotated[str | None, typer.Option(help="The address to listen on, one of this machine alone.")] = None,
    port: Annotated[int | None, typer.Option(help="The port to listen on; 0 takes a free one.")] = None,
    drain: Annotated[
        float | None, typer.Option(help="How many seconds requests may take to finish when the server is told to stop.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Start the server.

    It serves until Ctrl-C or SIGTERM; requests under way are finished first, unless it is told twice.
    """
    gc.disable()  # starting makes hardly any garbage, and looking for it would take a twentieth of the time
    from mlxm.hub import Hub, HubSettings
    from mlxm.server.run import run_server
    from mlxm.settings import home_folder, load_settings
    from mlxm.shelf import Shelf
    from mlxm.tiny import BUILTIN_NAME, BUILTIN_NOTE

    settings = load_settings({"server.host": host, "server.port": port, "server.drain_s": drain})

    def make_hub(on_death: Callable[[MlxmError], None], on_words: Callable[[str, str], None]) -> Hub:
        return Hub(HubSettings.of(settings), on_death, on_words)

    def tell_ready(url: str) -> None:
        announce(url, as_json=as_json)
        if set(Shelf(home_folder()).names()) == {BUILTIN_NAME}:
            print_note(BUILTIN_NOTE)
        gc.freeze()  # what is there now stays
        gc.enable()

    if not run_server(make_hub, settings, tell_ready):
        raise typer.Exit(ExitCode.INTERRUPTED)


def announce(url: str, *, as_json: bool) -> None:
    """Say where the server is, and how to use it."""
    if as_json:
        print_json({"url": url, "openai_base_url": f"{url}/v1"})
        sys.stdout.flush()
        return
    body = '{"model": "mlxm/tiny", "max_tokens": 32, "messages": [{"role": "user", "content": "Hello"}]}'
    print_line(f"mlxm is ready at {url}\n")
    print_line(f"export OPENAI_BASE_URL={url}/v1 OPENAI_API_KEY=none")
    print_line(f"curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'\n")
    sys.stdout.flush()
    print_note("Ctrl-C stops it.")
