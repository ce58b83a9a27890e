"""What bare `mlxm` shows on a terminal: whether a server runs, where, and what to do next.

The lock on the home says who the server is; the system says where that process listens.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil

from mlxm import __version__
from mlxm.cli.output import align_columns, print_line
from mlxm.cli.probes import read_port
from mlxm.settings import load_settings
from mlxm.store.lock import HomeStatus, home_status


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """The server of a home; `urls` are where it listens, `in_the_way` is who else has the port it would take."""

    home: HomeStatus
    wanted_url: str
    urls: tuple[str, ...] = ()
    in_the_way: str | None = None


def read_status(home: Path, host: str, port: int) -> ServerStatus:
    """Look for the home's server; nothing is started or changed."""
    status = home_status(home)
    url = show_url(host, port)
    if status.held:
        return ServerStatus(home=status, wanted_url=url, urls=find_urls(status.pid))
    listener = read_port(host, port, None).listener
    name = None if listener is None else listener.describe()
    return ServerStatus(home=status, wanted_url=url, in_the_way=name)


def find_urls(pid: int | None) -> tuple[str, ...]:
    """Where a process listens; nothing when it does not yet, or is not ours to look at."""
    try:
        links = psutil.Process(pid).net_connections("tcp") if pid is not None else []
    except psutil.Error:
        return ()
    return tuple(sorted({show_url(link.laddr.ip, link.laddr.port) for link in links if link.status == "LISTEN"}))


def show_url(host: str, port: int) -> str:
    """The address as a client on this machine writes it."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # a place to look at, not to bind
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def describe_status(status: ServerStatus) -> list[str]:
    """The lines to show."""
    state, steps = _describe_server(status)
    return [f"mlxm {__version__}: {state}", "", *(f"  {line}" for line in align_columns(steps))]


def _describe_server(status: ServerStatus) -> tuple[str, list[tuple[str, str]]]:
    """What is, and what to do next."""
    see_all = ("mlxm --help", "see every command")
    if status.home.held:
        pid = "" if status.home.pid is None else f" (pid {status.home.pid})"
        stop = [] if status.home.pid is None else [(f"kill {status.home.pid}", "stop it")]
        if not status.urls:
            return f"a server is starting{pid}", [*stop, see_all]
        bases = [(f"{url}/v1", "base URL for OpenAI clients") for url in status.urls]
        return f"a server is running{pid}", [*bases, *stop, see_all]
    start = ("mlxm serve", f"start one at {status.wanted_url}")
    if status.in_the_way is not None:
        start = ("mlxm serve --port PORT", f"start one elsewhere: {status.in_the_way} listens at {status.wanted_url}")
    return "no server is running", [start, ("mlxm doctor", "check this machine"), see_all]


def print_status() -> None:
    """Show the status of the home that the settings name."""
    settings = load_settings()
    for line in describe_status(read_status(settings.home, settings.server.host, settings.server.port)):
        print_line(line)
