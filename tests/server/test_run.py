import asyncio
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlxm.store.db import Database
from tests.server.harness import CHAT, chat_body

SCRIPT = Path(__file__).parent / "children" / "serve_script.py"
BOUND_S = 30


class Server:
    """A server process."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"

    def read_line(self) -> str:
        """The next line of its stdout."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def wait_ready(self) -> None:
        """Wait until it says that it serves."""
        line = self.read_line()
        assert line == f"ready {self.url}", (line, self.process.stderr and self.process.stderr.read())

    def signal(self, number: int = signal.SIGTERM) -> None:
        """Tell it to stop."""
        self.process.send_signal(number)

    def finish(self) -> tuple[int, str, str]:
        """Exit code, and what is left on stdout and stderr."""
        out, err = self.process.communicate(timeout=BOUND_S)
        return self.process.returncode, out.strip(), err


Start = Callable[..., Server]


def free_port() -> int:
    """A port that nobody has at this moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture(scope="session")
def used_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a database: making one costs more than all the rest of a start."""
    home = tmp_path_factory.mktemp("homes") / "used"
    home.mkdir(mode=0o700)

    async def make() -> None:
        async with await Database.open(home / "mlxm.db"):
            pass

    asyncio.run(make())
    return home


@pytest.fixture
def start(tmp_path: Path, mlxm_home: Path, used_home: Path) -> Iterator[Start]:
    """Start server processes, which are ended with the test."""
    processes: list[subprocess.Popen[str]] = []

    def start_one(manner: str, *, port: int | None = None, home: Path = mlxm_home, **settings: Any) -> Server:
        port = free_port() if port is None else port
        if not home.exists():
            shutil.copytree(used_home, home)
        environ = {f"MLXM_SERVER__{name.upper()}": str(value) for name, value in settings.items()}
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), manner, str(tmp_path / "start")],
            env={**os.environ, "MLXM_HOME": str(home), "MLXM_SERVER__PORT": str(port), **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return Server(process, port)

    yield start_one
    for process in processes:
        process.kill()
        process.communicate()


def audit_rows(home: Path) -> list[tuple[int, str | None]]:
    """Status and error code of every row."""
    with sqlite3.connect(home / "mlxm.db") as connection:
        return connection.execute("SELECT status, error_code FROM audit ORDER BY started_at").fetchall()


def test_life_without_incident(start: Start, mlxm_home: Path) -> None:
    """It says when it is ready, serves, leaves on SIGTERM with 0, closes its backend, and has kept the row."""
    server = start("echo")
    server.wait_ready()
    assert httpx.get(f"{server.url}/ready").json() == {"status": "ready", "reason": None}
    assert httpx.post(server.url + CHAT, json=chat_body()).status_code == 200
    server.signal()
    code, out, err = server.finish()
    assert (code, out) == (0, "closed with 0 active")
    assert audit_rows(mlxm_home) == [(200, None)]
    lines = [json.loads(line) for line in err.splitlines()]
    assert {line["event"] for line in lines} >= {"chat", "request"}


def test_idle_connections_do_not_hold_it(start: Start) -> None:
    """A client that keeps its connection for later does not keep the server from leaving."""
    server = start("echo")
    server.wait_ready()
    with httpx.Client() as client:
        client.get(f"{server.url}/health")
        began = time.monotonic()
        server.signal(signal.SIGINT)
        assert server.finish()[0] == 0
        assert time.monotonic() - began < 2.5


def test_drain_finishes_what_runs(start: Start, mlxm_home: Path) -> None:
    """After SIGTERM a stream goes on to its end; meanwhile probes say why, and new requests are told to come back."""
    server = start("echo")
    server.wait_ready()
    content = " ".join(map(str, range(30)))
    with httpx.stream(
        "POST", server.url + CHAT, json=chat_body(content=content, stream=True), timeout=BOUND_S
    ) as stream:
        lines = stream.iter_lines()
        next(lines)
        server.signal()
        refusal = wait_for_refusal(server)
        assert (refusal.status_code, refusal.json()["error"]["code"]) == (503, "draining")
        assert int(refusal.headers["retry-after"]) >= 1
        ready = httpx.get(f"{server.url}/ready")
        assert (ready.status_code, ready.json()["status"]) == (503, "draining")
        assert httpx.get(f"{server.url}/health").status_code == 200
        rest = "\n".join(lines)
    assert '" 29"' in rest
    assert rest.rstrip().endswith("data: [DONE]")
    assert server.finish()[0] == 0
    assert audit_rows(mlxm_home) == [(200, None)]


def wait_for_refusal(server: Server) -> httpx.Response:
    """Ask for what costs nothing until the signal has been seen."""
    deadline = time.monotonic() + BOUND_S
    while time.monotonic() < deadline:
        response = httpx.get(f"{server.url}/nowhere")
        if response.status_code != 404:
            return response
    raise TimeoutError


@pytest.mark.parametrize("how", ["drain ends", "second signal"])
def test_what_does_not_finish_gets_last_words(start: Start, mlxm_home: Path, how: str) -> None:
    """When waiting is over, by time or by a second signal, streams end with an error event and requests with 503."""
    server = start("endless", drain_s=0.3 if how == "drain ends" else 300)
    server.wait_ready()
    with httpx.stream("POST", server.url + CHAT, json=chat_body(stream=True), timeout=BOUND_S) as stream:
        lines = stream.iter_lines()
        next(lines)
        server.signal()
        if how == "second signal":
            assert wait_for_refusal(server).status_code == 503
            server.signal()
        text = "\n".join(lines)
    last = text.rstrip().split("\n\n")[-1]
    assert last.startswith("event: error\ndata: ")
    assert json.loads(last.split("data: ")[1])["error"]["code"] == "draining"
    code, out, _ = server.finish()
    assert (code, out) == (0 if how == "drain ends" else 130, "closed with 0 active")
    assert audit_rows(mlxm_home) == [(503, "draining")]


def test_early_clients_wait(start: Start, tmp_path: Path) -> None:
    """The port is open from the first moment: probes answer while the backend starts, and chats say why not yet."""
    server = start("late")
    wait_for_port(server)
    ready = httpx.get(f"{server.url}/ready", timeout=BOUND_S)
    assert ready.status_code == 503
    assert ready.json()["status"] == "starting"
    assert ready.json()["reason"]
    assert httpx.post(server.url + CHAT, json=chat_body()).status_code == 503
    (tmp_path / "start").touch()
    server.wait_ready()
    assert httpx.get(f"{server.url}/ready").status_code == 200
    assert httpx.post(server.url + CHAT, json=chat_body()).status_code == 200
    server.signal()
    assert server.finish()[0] == 0


def wait_for_port(server: Server) -> None:
    """Connect as soon as anyone listens; a server that comes later than its clients refuses them."""
    deadline = time.monotonic() + BOUND_S
    while time.monotonic() < deadline:
        try:
            httpx.get(f"{server.url}/health", timeout=BOUND_S)
        except httpx.ConnectError:
            time.sleep(0.01)
        else:
            return


def test_signal_while_starting(start: Start) -> None:
    """A server that is told to stop before it is ready stops."""
    server = start("late")
    wait_for_port(server)
    server.signal()
    code, out, _ = server.finish()
    assert (code, out) == (0, "closed with 0 active")


def test_backend_that_cannot_start(start: Start) -> None:
    """Its own error is the server's, and everything is closed."""
    code, out, _ = start("broken").finish()
    assert code == 1
    assert out.splitlines() == ["closed with 0 active", "worker_died: It cannot start."]


def test_database_that_cannot_open(start: Start, mlxm_home: Path) -> None:
    """A file that is no database ends the start with a clear error."""
    mlxm_home.mkdir(mode=0o700)
    (mlxm_home / "mlxm.db").write_bytes(b"no database" * 1000)
    (mlxm_home / "mlxm.db").chmod(0o600)
    code, out, _ = start("echo").finish()
    assert code == 1
    assert out.splitlines()[-1].startswith("store_failed: ")


def test_backend_that_does_not_close(start: Start) -> None:
    """In a hurry, nothing is waited for long."""
    server = start("clinging")
    server.wait_ready()
    began = time.monotonic()
    server.signal()
    wait_for_closed_port(server)
    server.signal()
    assert server.finish()[0] == 130
    assert time.monotonic() - began < 8


def wait_for_closed_port(server: Server) -> None:
    """Wait until nobody listens any more: from there on only the backend keeps the server."""
    deadline = time.monotonic() + BOUND_S
    while time.monotonic() < deadline:
        try:
            httpx.get(f"{server.url}/health")
        except httpx.TransportError:
            return
        time.sleep(0.01)
    raise TimeoutError


def test_two_servers_on_one_home(start: Start) -> None:
    """The second one names the first; when the first is killed its place is free at once."""
    first = start("echo")
    first.wait_ready()
    code, out, _ = start("echo").finish()
    assert code == 1
    assert out.startswith("already_running: ")
    assert str(first.process.pid) in out
    first.signal(signal.SIGKILL)
    first.finish()
    start("echo").wait_ready()


def test_port_in_use(start: Start, tmp_path: Path) -> None:
    """The error names who has the port; also when that is another of our servers."""
    first = start("echo")
    first.wait_ready()
    port = int(first.url.rsplit(":", 1)[1])
    code, out, _ = start("echo", port=port, home=tmp_path / "other").finish()
    assert code == 1
    assert out.startswith(f"port_in_use: Port {port} is in use by ")
    assert f"(pid {first.process.pid})" in out
