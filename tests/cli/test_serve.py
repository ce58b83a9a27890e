import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest

from mlxm.cli.serve import announce

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
