import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest

BOUND_S = 120
MODEL = "mlxm/tiny"


@dataclass(frozen=True)
class ServerProcess:
    """`mlxm serve` on a home of its own, as a person would start it."""

    process: subprocess.Popen[str]
    url: str
    home: Path
    log_path: Path

    def client(self) -> openai.OpenAI:
        """The real SDK; it repeats nothing by itself."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=BOUND_S)

    def rows(self) -> dict[str, tuple[int, str | None, int]]:
        """Status, error code and tokens out of every finished request, by its id."""
        with sqlite3.connect(self.home / "mlxm.db") as connection:
            rows = connection.execute("SELECT request_id, status, error_code, tokens_out FROM audit").fetchall()
        return {request_id: (status, code, tokens) for request_id, status, code, tokens in rows}


StartServer = Callable[..., ServerProcess]


def start(home: Path, *options: str, interpreter: tuple[str, ...] = ()) -> ServerProcess:
    """Start a server on a free port, and wait until it says that it is ready; its log goes beside the home."""
    log_path = home.with_suffix(".log")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MLXM_")}
    with log_path.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *interpreter, "-m", "mlxm", "serve", "--port", "0", *options],
            env={**environ, "MLXM_HOME": str(home)},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("mlxm is ready at "), (line, log_path.read_text())
    return ServerProcess(process, line.split()[-1], home, log_path)


@pytest.fixture(scope="session")
def server() -> Iterator[ServerProcess]:
    """One server on a fresh home, for all tests that leave it as it is."""
    folder = Path(tempfile.mkdtemp(prefix="mlxm-e2e-"))
    running = start(folder / "home")
    yield running
    running.process.terminate()
    running.process.communicate(timeout=BOUND_S)
    shutil.rmtree(folder)


@pytest.fixture
def start_server(tmp_path: Path, server: ServerProcess) -> Iterator[StartServer]:
    """Start servers that end with the test, on copies of a home whose model is built already."""
    running: list[ServerProcess] = []

    def start_one(*options: str, interpreter: tuple[str, ...] = ()) -> ServerProcess:
        home = tmp_path / f"home-{len(running)}"
        home.mkdir(mode=0o700)
        shutil.copytree(server.home / "models", home / "models")
        running.append(start(home, *options, interpreter=interpreter))
        return running[-1]

    yield start_one
    for one in running:
        one.process.kill()
        one.process.communicate(timeout=BOUND_S)


@pytest.fixture
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    """The SDK in front of the shared server."""
    with server.client() as client:
        yield client
