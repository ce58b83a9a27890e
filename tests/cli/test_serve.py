import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import httpx
import pytest

from mlxm.cli.detach import failure_of
from mlxm.cli.serve import announce
from mlxm.remote import Remote, find_server
from mlxm.server.listen import open_unix_listener
from mlxm.settings import home_folder

Run = Callable[..., subprocess.CompletedProcess[str]]
BOUND_S = 60


@contextmanager
def serving(*args: str, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """A server that was started on the command line."""
    with subprocess.Popen(
        [sys.executable, "-m", "mlxm", "serve", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=dict(os.environ),
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def running_server() -> Remote:
    """The running server, as other commands find it."""
    remote = find_server(home_folder())
    assert remote is not None
    return remote


def test_says_where_it_is_and_how_to_use_it(user_home: Path) -> None:
    """The banner is the result, on stdout: the address, and lines that can be pasted as they are."""
    with serving("--port", "0", cwd=user_home) as server:
        assert server.stdout is not None
        assert server.stderr is not None
        first = server.stdout.readline().split()
        assert first[:-1] == ["mlxm", "is", "ready", "at"]
        url = first[-1]
        with urlopen(f"{url}/ready", timeout=BOUND_S) as response:  # our own server
            assert response.status == 200
        server.send_signal(signal.SIGINT)
        rest, notes = server.stdout.read(), server.stderr.read()
        assert server.wait(BOUND_S) == 0
        assert f"OPENAI_BASE_URL={url}/v1" in rest
        assert f"curl {url}/v1/chat/completions" in rest
        assert "Ctrl-C" in notes
        assert "gibberish" in notes


def test_json_names_the_addresses(capsys: pytest.CaptureFixture[str]) -> None:
    """A program that starts the server reads one object."""
    announce("http://127.0.0.1:6596", as_json=True)
    assert json.loads(capsys.readouterr().out) == {
        "url": "http://127.0.0.1:6596",
        "openai_base_url": "http://127.0.0.1:6596/v1",
    }


def test_pasted_line_is_a_good_request(capsys: pytest.CaptureFixture[str]) -> None:
    """The body inside the curl line is JSON."""
    announce("http://127.0.0.1:6596", as_json=False)
    shown = capsys.readouterr().out
    body = json.loads(shown.split("-d '")[1].split("'")[0])
    assert body["model"] == "mlxm/tiny"


def test_other_machines_are_kept_out(run_mlxm: Run) -> None:
    """Without keys the server listens on loopback only, and says so."""
    result = run_mlxm("serve", "--host", "0.0.0.0", "--port", "0")  # noqa: S104  # refused
    assert result.returncode == 78
    assert "0.0.0.0" in result.stderr  # noqa: S104  # as above
    assert "hint:" in result.stderr


def test_port_in_use(run_mlxm: Run) -> None:
    """The one who has the port is named."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        result = run_mlxm("serve", "--port", str(holder.getsockname()[1]))
    assert result.returncode == 69
    assert f"(pid {os.getpid()})" in result.stderr


def test_home_in_use(run_mlxm: Run, user_home: Path) -> None:
    """The second server on a home is told who has it."""
    with serving("--port", "0", cwd=user_home) as first:
        assert first.stdout is not None
        first.stdout.readline()
        result = run_mlxm("serve", "--port", "0", "--json")
    assert result.returncode == 75
    error = json.loads(result.stderr)["error"]
    assert error["code"] == "already_running"
    assert str(first.pid) in error["message"]


@pytest.mark.parametrize("args", [("--port", "70000"), ("--drain", "-1"), ("--port", "x")])
def test_values_that_are_not_allowed(run_mlxm: Run, args: tuple[str, ...]) -> None:
    """Flags are held to the rules of the settings that they stand for."""
    result = run_mlxm("serve", *args)
    assert result.returncode in (2, 3)
    assert "error:" in result.stderr


def test_a_socket_instead_of_a_port(user_home: Path) -> None:
    """For this user alone; the pasted line works as it is, and the path is gone afterwards."""
    path = user_home / "s.sock"
    with serving("--uds", str(path), cwd=user_home) as server:
        assert server.stdout is not None
        assert server.stdout.readline().split()[-1] == f"unix:{path}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://localhost") as client:
            assert client.get("/ready").status_code == 200
        with running_server() as remote:
            assert remote.downloads() == ()
        server.send_signal(signal.SIGTERM)
        rest = server.stdout.read()
        assert server.wait(BOUND_S) == 0
    assert f"curl --unix-socket {path} http://localhost/v1/chat/completions" in rest
    assert "export" not in rest
    assert not path.exists()


def test_a_socket_that_somebody_has(run_mlxm: Run, tmp_path: Path) -> None:
    """Or that cannot be one; what a killed server left is taken over."""
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as holder:
        holder.bind(str(path))
        holder.listen()
        assert run_mlxm("serve", "--uds", str(path)).returncode == 69
    open_unix_listener(path).close()
    path.unlink()
    path.write_text("no socket")
    for wrong in (path, tmp_path / "absent" / "s.sock", tmp_path / ("x" * 200)):
        result = run_mlxm("serve", "--uds", str(wrong))
        assert result.returncode == 3
        assert "hint:" in result.stderr


def test_in_the_background(run_mlxm: Run, is_gone: Callable[[int, float], bool]) -> None:
    """The command ends when the server is ready; the server goes on until it is told to stop."""
    result = run_mlxm("serve", "--detach", "--port", "0", "--json")
    assert result.returncode == 0, result.stderr
    started = json.loads(result.stdout)
    try:
        with urlopen(f"{started['url']}/ready", timeout=BOUND_S) as response:
            assert response.status == 200
        second = run_mlxm("serve", "--detach", "--port", "0")
        assert second.returncode == 75
        assert str(started["pid"]) in second.stderr
    finally:
        os.kill(started["pid"], signal.SIGTERM)
    assert is_gone(started["pid"], BOUND_S)
    assert stat.S_IMODE(Path(started["log"]).stat().st_mode) == 0o600


def test_in_the_background_for_people(run_mlxm: Run, is_gone: Callable[[int, float], bool]) -> None:
    """The same lines to paste, and how to stop it."""
    result = run_mlxm("serve", "--detach", "--port=0")
    pid = int(result.stderr.split("process ")[1].split(".")[0])
    try:
        assert "OPENAI_BASE_URL=" in result.stdout
        assert run_mlxm("stop").returncode == 0
    finally:
        is_running = not is_gone(pid, BOUND_S)
        if is_running:
            os.kill(pid, signal.SIGTERM)
    assert not is_running


def test_what_the_background_cannot_start_for_is_told(run_mlxm: Run) -> None:
    """As if it had been in the foreground."""
    result = run_mlxm("serve", "--detach", "--host", "0.0.0.0")  # noqa: S104  # refused
    assert result.returncode == 78
    assert "hint:" in result.stderr
    assert run_mlxm("serve", "--detach", "--port", "70000").returncode == 3


def test_a_server_without_last_words_is_told_as_well(tmp_path: Path) -> None:
    """Its log may say more."""
    log = tmp_path / "serve.log"
    log.write_text('an old line\n{"error": {"code": "port_in_use", "message": "old"}}\nnonsense\n')
    error = failure_of(log, log.read_text().index("nonsense"))
    assert str(log) in str(error.hint)
