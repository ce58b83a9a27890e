import os
import pty
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mlxm.testing.fake_hub import FakeHub
from tests.cli.model_cache import HERE, Cabinet, fill, stock

BOUND_S = 60


@dataclass(frozen=True)
class TerminalRun:
    """What a person sees of a command, and how it ended."""

    screen: str
    code: int


@pytest.fixture
def user_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A person's empty home folder, for this process and those it starts."""
    for name in ("HF_HOME", "HF_HUB_CACHE", "HF_TOKEN", "NO_COLOR", "FORCE_COLOR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "user"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("MLXM_HOME", str(home / ".mlxm"))
    monkeypatch.setenv("COLUMNS", "80")
    return home


@pytest.fixture
def run_mlxm(user_home: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line in a process of its own, with pipes."""

    def run(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mlxm", *args]
        return subprocess.run(  # noqa: PLW1510
            command, capture_output=True, text=True, timeout=BOUND_S, cwd=user_home, env={**os.environ, **env}
        )

    return run


@pytest.fixture
def run_in_terminal(user_home: Path) -> Callable[..., TerminalRun]:
    """Run the command line on a terminal of 80 columns."""

    def run(*args: str, **env: str) -> TerminalRun:
        mine, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (24, 80))
        process = subprocess.Popen(
            [sys.executable, "-m", "mlxm", *args],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=user_home,
            env={**os.environ, "TERM": "xterm", **env},
        )
        os.close(theirs)
        screen = _read_to_end(mine)
        return TerminalRun(screen.replace("\r\n", "\n"), process.wait(BOUND_S))

    return run


def _read_to_end(descriptor: int) -> str:
    """All that is written to a terminal until its last writer has gone."""
    chunks = []
    with open(descriptor, "rb", buffering=0) as terminal:
        while True:
            try:
                chunk = terminal.read(65536)
            except OSError:  # how Linux says that nobody holds the other end
                break
            if not chunk:
                break
            chunks.append(chunk)
    return b"".join(chunks).decode()


@pytest.fixture
def cabinet(user_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cabinet:
    """A person without a model yet, on a machine of a known size at a known moment."""
    hub_cache = user_home / ".cache" / "huggingface" / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub_cache))
    monkeypatch.setattr("mlxm.shelf.LM_STUDIO", Path(".lmstudio") / "models")
    monkeypatch.setattr("mlxm.cli.machine.read_machine", lambda: HERE)
    return Cabinet(user_home, hub_cache, user_home / ".mlxm", monkeypatch, capsys)


@pytest.fixture
def full_cabinet(cabinet: Cabinet) -> Cabinet:
    """A person with models of every state."""
    fill(cabinet)
    return cabinet


@pytest.fixture
def hub(cabinet: Cabinet, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A Hub with a few models, which every command asks."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(cabinet.user / "no-token"))
    with FakeHub(tokens={"good": ("meta/gated",)}) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        stock(running, cabinet.user)
        yield running
