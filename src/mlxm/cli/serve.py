"""`mlxm serve`: the server in the foreground, and the lines to paste into whatever should use it."""

from __future__ import annotations

import gc
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import typer

from mlxm.cli.output import ExitCode, JsonFlag, print_json, print_line, print_note
from mlxm.errors import MlxmError
from mlxm.store.control import UNIX_SCHEME

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(epilog="Example: mlxm serve --port 8080")
def serve(
    *,
    host: Annotated[str | None, typer.Option(help="The address to listen on, one of this machine alone.")] = None,
    port: Annotated[int | None, typer.Option(help="The port to listen on; 0 takes a free one.")] = None,
    drain: Annotated[
        float | None, typer.Option(help="How many seconds requests may take to finish when the server is told to stop.")
    ] = None,
    uds: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Listen on a socket at this path, and on no port.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Go on in the background once it is ready.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Start the server.

    It serves until Ctrl-C or SIGTERM; requests under way are finished first, unless it is told twice.
    """
    path = None if uds is None else uds.expanduser().absolute()
    if detach:
        start_in_background({"--host": host, "--port": port, "--drain": drain, "--uds": path}, as_json=as_json)
        return
    gc.disable()  # starting makes hardly any garbage, and looking for it would take a twentieth of the time
    from mlxm.hub import Hub, HubSettings, pool_wishes
    from mlxm.server.run import run_server
    from mlxm.settings import home_folder, load_settings
    from mlxm.shelf import Shelf
    from mlxm.tiny import BUILTIN_NAME, BUILTIN_NOTE

    flags = {"server.host": host, "server.port": port, "server.drain_s": drain}
    settings = load_settings(flags)

    def make_hub(on_death: Callable[[MlxmError], None], on_words: Callable[[str, str], None]) -> Hub:
        return Hub(HubSettings.of(settings), on_death, on_words, lambda: pool_wishes(load_settings(flags)))

    def tell_ready(url: str) -> None:
        announce(url, as_json=as_json)
        if set(Shelf(home_folder()).names()) == {BUILTIN_NAME}:
            print_note(BUILTIN_NOTE)
        gc.freeze()  # what is there now stays
        gc.enable()

    if not run_server(make_hub, settings, tell_ready, uds=path):
        raise typer.Exit(ExitCode.INTERRUPTED)


def start_in_background(flags: Mapping[str, object], *, as_json: bool) -> None:
    """Start the same server as a process of its own, and say where it is."""
    from mlxm.cli.detach import serve_in_background
    from mlxm.settings import home_folder

    given = [f"{name}={value}" for name, value in flags.items() if value is not None]
    started = serve_in_background(home_folder(), given)
    if as_json:
        print_json({**_addresses(started.url), "pid": started.pid, "log": started.log})
        return
    print_lines_to_paste(started.url)
    print_note(f"It runs in the background as process {started.pid}. Its log is {started.log}; `mlxm stop` stops it.")


def announce(url: str, *, as_json: bool) -> None:
    """Say where the server is, and how to use it."""
    if as_json:
        print_json(_addresses(url))
        return
    print_lines_to_paste(url)
    print_note("Ctrl-C stops it.")


def print_lines_to_paste(url: str) -> None:
    """Print the address, and lines that can be pasted as they are."""
    body = '{"model": "mlxm/tiny", "max_tokens": 32, "messages": [{"role": "user", "content": "Hello"}]}'
    print_line(f"mlxm is ready at {url}\n")
    if url.startswith(UNIX_SCHEME):
        reach, base = f"--unix-socket {shlex.quote(url.removeprefix(UNIX_SCHEME))} ", "http://localhost/v1"
    else:
        reach, base = "", f"{url}/v1"
        print_line(f"export OPENAI_BASE_URL={base} OPENAI_API_KEY=none")
    print_line(f"curl {reach}{base}/chat/completions -H 'Content-Type: application/json' -d '{body}'\n")


def _addresses(url: str) -> dict[str, str]:
    is_unix = url.startswith(UNIX_SCHEME)
    return {"url": url, "openai_base_url": "http://localhost/v1" if is_unix else f"{url}/v1"}
