import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from mlxm import __version__
from mlxm.cli.status import ServerStatus, describe_status, find_urls, read_status, show_url
from mlxm.store.lock import HomeStatus

URL = "http://127.0.0.1:6596"

SERVER = dedent(
    """
    import socket, sys
    from pathlib import Path
    from mlxm.store.lock import HomeLock

    with HomeLock(Path(sys.argv[1])):
        listener = socket.create_server(("127.0.0.1", 0)) if sys.argv[2] == "listen" else None
        print(listener.getsockname()[1] if listener else 0, flush=True)
        sys.stdin.read()
    """
)


@pytest.fixture
def start_server(user_home: Path) -> Iterator[Callable[[str], tuple[int, int]]]:
    """Start a process that holds the home, and listens or not; its pid and port."""
    running: list[subprocess.Popen[str]] = []

    def start(what: str) -> tuple[int, int]:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(user_home / ".mlxm"), what],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        assert process.stdout is not None
        return process.pid, int(process.stdout.readline())

    yield start
    for process in running:
        process.communicate(timeout=60)


def test_no_server_says_how_to_start_one() -> None:
    """The next step is the first line."""
    status = ServerStatus(home=HomeStatus(held=False), wanted_url=URL)

    assert describe_status(status) == [
        f"mlxm {__version__}: no server is running",
        "",
        f"  mlxm serve   start one at {URL}",
        "  mlxm doctor  check this machine",
        "  mlxm --help  see every command",
    ]


def test_port_in_the_way_is_told_before_it_fails() -> None:
    """`mlxm serve` would not get the port, so another is proposed."""
    status = ServerStatus(home=HomeStatus(held=False), wanted_url=URL, in_the_way="nginx (pid 8)")

    assert describe_status(status)[2].split("  ")[1:] == [
        "mlxm serve --port PORT",
        f"start one elsewhere: nginx (pid 8) listens at {URL}",
    ]


def test_running_server_says_where_clients_connect() -> None:
    """The base URL is what people copy."""
    status = ServerStatus(home=HomeStatus(held=True, pid=7), wanted_url=URL, urls=(URL,))

    assert describe_status(status) == [
        f"mlxm {__version__}: a server is running (pid 7)",
        "",
        f"  {URL}/v1  base URL for OpenAI clients",
        "  kill 7                    stop it",
        "  mlxm --help               see every command",
    ]


def test_server_that_does_not_listen_yet_is_starting() -> None:
    """The lock is taken before the port."""
    status = ServerStatus(home=HomeStatus(held=True, pid=7), wanted_url=URL)

    assert describe_status(status)[0].endswith(": a server is starting (pid 7)")


def test_server_without_a_known_pid_is_told_without() -> None:
    """The lock counts, not the name in it."""
    lines = describe_status(ServerStatus(home=HomeStatus(held=True), wanted_url=URL))

    assert lines[0].endswith(": a server is starting")
    assert not any("kill" in line for line in lines)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),  # noqa: S104
        ("::", "http://[::1]:80"),
        ("::1", "http://[::1]:80"),
        ("localhost", "http://localhost:80"),
    ],
)
def test_address_is_shown_as_a_client_writes_it(host: str, url: str) -> None:
    """Nobody connects to 0.0.0.0."""
    assert show_url(host, 80) == url


def test_real_server_is_found_at_its_port(start_server: Callable[[str], tuple[int, int]], user_home: Path) -> None:
    """The lock names the process, and the process its port, whatever the settings say."""
    pid, port = start_server("listen")

    assert read_status(user_home / ".mlxm", "127.0.0.1", 1) == ServerStatus(
        home=HomeStatus(held=True, pid=pid), wanted_url="http://127.0.0.1:1", urls=(f"http://127.0.0.1:{port}",)
    )


def test_real_server_that_starts_has_no_address(
    start_server: Callable[[str], tuple[int, int]], user_home: Path
) -> None:
    """Before it listens there is nothing to connect to."""
    start_server("wait")

    assert read_status(user_home / ".mlxm", "127.0.0.1", 1).urls == ()


def test_port_of_another_program_is_noticed(user_home: Path) -> None:
    """A listener in the way, here the test itself, is named."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        status = read_status(user_home / ".mlxm", "127.0.0.1", listener.getsockname()[1])

    assert status.in_the_way is not None
    assert str(os.getpid()) in status.in_the_way


def test_process_that_is_gone_listens_nowhere() -> None:
    """Between two looks a server may end."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(60)

    assert find_urls(process.pid) == ()
    assert find_urls(None) == ()


def test_terminal_shows_the_running_server(
    start_server: Callable[[str], tuple[int, int]], run_in_terminal: Callable[..., Any]
) -> None:
    """The whole way from the lock to the screen, within 80 columns."""
    pid, port = start_server("listen")
    run = run_in_terminal()

    assert run.code == 0
    assert f"a server is running (pid {pid})" in run.screen
    assert f"http://127.0.0.1:{port}/v1" in run.screen
    assert max(map(len, run.screen.splitlines())) <= 80


def test_invalid_settings_are_told_instead(user_home: Path, run_in_terminal: Callable[..., Any]) -> None:
    """Without settings nobody knows where to look."""
    (user_home / ".mlxm").mkdir()
    (user_home / ".mlxm" / "config.toml").write_text("[server]\nport = 'x'\n")
    run = run_in_terminal(NO_COLOR="1")

    assert run.code == 3
    assert run.screen.startswith("error: server.port")
