"""Those who compete in `benchmarks.server`: processes that are started, warmed up, and whose CPU time is told.

Each runs as it does in real life, on the same model folder and the same BLAS on one thread: `mlxm serve` loads it in
its workers; the peers get it from the same few lines before they import mlx. mlx_vlm.server has its prefix cache on,
which it has not by default, in memory alone.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import msgspec
import psutil

MLXM = str(Path(sys.executable).with_name("mlxm"))
OURS, LM, VLM = "mlxm serve", "mlx_lm.server", "mlx_vlm.server"
ALIAS = "bench"
BOUND_S = 300.0
_POLL_S = 0.05
_OK = 200
_QUIET_SHARE = 0.1
_NUM_BLAS_THREADS = 1
_BOOTSTRAP = """\
import sys
from mlxm.device.blas import open_blas
open_blas(num_threads={threads})
from {module} import main
sys.argv = ["{name}", *sys.argv[1:]]
main()
"""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to start a server, where it says that it is alive, and what it calls the model."""

    name: str
    command: tuple[str, ...]
    alive_path: str
    model: str


class Server:
    """A running server."""

    def __init__(self, plan: Plan, port: int, process: psutil.Process) -> None:
        self.name = plan.name
        self.model = plan.model
        self.port = port
        self._process = process

    def cpu_s(self) -> float:
        """What the server and all its processes have taken so far."""
        return sum(cpu_of(process) for process in [self._process, *self._process.children(recursive=True)])

    def cpu_by_role(self) -> dict[str, float]:
        """The same: the server itself, and what each of its modules has taken."""
        parts = {"server": cpu_of(self._process)}
        for child in self._process.children(recursive=True):
            role = next((word.rpartition(".")[2] for word in child.cmdline() if word.startswith("mlxm.")), "other")
            parts[role] = parts.get(role, 0.0) + cpu_of(child)
        return parts

    def settle(self) -> None:
        """Wait until nothing of what starting left behind is still at work."""
        deadline_s = time.monotonic() + BOUND_S
        while time.monotonic() < deadline_s:
            before_s = self.cpu_s()
            time.sleep(0.5)
            if self.cpu_s() - before_s < _QUIET_SHARE * 0.5:
                return


def cpu_of(process: psutil.Process) -> float:
    """What a process and those of its children that have ended took."""
    times = process.cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


def plans(folder: Path, names: Sequence[str]) -> list[Plan]:
    """The contenders of these names."""
    every = (
        Plan(name=OURS, command=(MLXM, "serve"), alive_path="/ready", model=ALIAS),
        Plan(
            name=LM,
            command=(*_with_blas("mlx_lm.server"), "--model", str(folder)),
            alive_path="/health",
            model="default_model",
        ),
        Plan(
            name=VLM,
            command=(*_with_blas("mlx_vlm.server"), "--model", str(folder)),
            alive_path="/health",
            model=str(folder),
        ),
    )
    return [plan for plan in every if plan.name in names]


@contextmanager
def running(folder: Path, home: Path, names: Sequence[str]) -> Iterator[dict[str, Server]]:
    """All servers at once, each ready to answer; those that do nothing take next to nothing."""
    environ = _environ(home)
    subprocess.run([MLXM, "import", str(folder), "--alias", ALIAS], env=environ, check=True, capture_output=True)
    started: list[tuple[Plan, int, subprocess.Popen[bytes]]] = []
    try:
        for plan in plans(folder, names):
            port = _free_port()
            command = [*plan.command, "--port", str(port)]
            with _log_of(plan, home).open("wb") as log:
                started.append((plan, port, subprocess.Popen(command, env=environ, stdout=log, stderr=log)))
        servers = {plan.name: _ready_server(plan, port, process, home) for plan, port, process in started}
        for server in servers.values():
            server.settle()
        yield servers
    finally:
        for _, _, process in started:
            process.terminate()
        for _, _, process in started:
            process.wait(BOUND_S)


def _with_blas(module: str) -> tuple[str, ...]:
    code = _BOOTSTRAP.format(threads=_NUM_BLAS_THREADS, module=module, name=module)
    return (sys.executable, "-c", code)


def _environ(home: Path) -> dict[str, str]:
    threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(_NUM_BLAS_THREADS))
    cache = {"APC_ENABLED": "1", "APC_DISK_ENABLED": "0"}
    places = {"MLXM_HOME": str(home), "HF_HUB_CACHE": str(home / "hub"), "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **threads, **cache, **places}


def _log_of(plan: Plan, home: Path) -> Path:
    return home / f"{plan.name}.log"


def _ready_server(plan: Plan, port: int, process: subprocess.Popen[bytes], home: Path) -> Server:
    deadline_s = time.monotonic() + BOUND_S
    while _status(port, plan.alive_path) != _OK:
        if process.poll() is not None or time.monotonic() > deadline_s:
            last_words = _log_of(plan, home).read_text("utf-8")[-2000:]
            raise RuntimeError(f"{plan.name} never became ready: {last_words}")
        time.sleep(_POLL_S)
    server = Server(plan, port, psutil.Process(process.pid))
    _ask_once(server)
    return server


def _ask_once(server: Server) -> None:
    """One short answer, so that the model is loaded and all has been imported."""
    connection = HTTPConnection("127.0.0.1", server.port, timeout=BOUND_S)
    connection.request("POST", "/v1/chat/completions", body(server, "Hello", 2), {"Content-Type": "application/json"})
    response = connection.getresponse()
    said = response.read()
    connection.close()
    if response.status != _OK:
        raise RuntimeError(f"{server.name} answered {response.status}: {said!r}")


def body(server: Server, text: str, max_tokens: int, *, system: str | None = None) -> bytes:
    """A request that every contender understands alike; the answer is streamed, and is what is most likely."""
    first = [] if system is None else [{"role": "system", "content": system}]
    return msgspec.json.encode(
        {
            "model": server.model,
            "messages": [*first, {"role": "user", "content": text}],
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    )


def _status(port: int, path: str) -> int | None:
    """The status of a GET, or None while nobody answers."""
    connection = HTTPConnection("127.0.0.1", port, timeout=BOUND_S)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, HTTPException):
        return None
    finally:
        connection.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
