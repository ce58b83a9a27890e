"""How long a person waits for `mlxm --help`, and a client for `mlxm serve`.

help: against the import of typer alone, which is the least that any typer program costs.
server_ready: against mlx_lm.server on the same model folder, from exec until the first 200 of /ready (ours) or /health
(theirs). Both then take requests and have loaded no model yet or are still loading it; the rows named `answer` say when
the first token of the first chat completion had come, model load included. No gate is on those.
list: `mlxm ls` over 300 models in the Hub's cache, as seconds beyond `mlxm --version`. The row `first` is the look that
reads every header; later ones remember what has not changed. The gate is on those.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from statistics import median
from typing import TypeVar

from benchmarks.many_models import fill_cache
from benchmarks.report import Gate, Report, Value, median_ratio, run_benchmark
from mlxm.tiny.builtin import BUILTIN_NAME, build_builtin

MLXM = str(Path(sys.executable).with_name("mlxm"))
TYPER_ALONE = (sys.executable, "-c", "import typer")
HELP = (MLXM, "--help")
LIST = (MLXM, "ls")
VERSION = (MLXM, "--version")
HELP_TARGET = 2.5
LIST_TARGET_S = 0.3
NUM_MODELS = 300
READY_TARGET = 0.5
BOUND_S = 120.0
POLL_S = 0.005
OK = 200

T = TypeVar("T")


@dataclass(frozen=True)
class Cost:
    """What one run of a program took."""

    wall_s: float
    cpu_s: float


@dataclass(frozen=True)
class Contender:
    """A server to start: its command line without the port, where it says that it is ready, and its model's name."""

    name: str
    command: tuple[str, ...]
    ready_path: str
    model: str


@dataclass(frozen=True)
class Start:
    """Seconds from exec to readiness, and to the end of the first answer."""

    ready_s: float
    answer_s: float


def measure(is_quick: bool) -> Report:  # noqa: FBT001  # the one argument of every benchmark
    """Measure help, list and server in turn."""
    reports = (
        measure_help(5 if is_quick else 25),
        measure_list(5 if is_quick else 15),
        measure_server(2 if is_quick else 9),
    )
    return Report(
        rows=tuple(row for report in reports for row in report.rows),
        gates=tuple(gate for report in reports for gate in report.gates),
    )


def measure_help(num_rounds: int) -> Report:
    """`mlxm --help` against the import of typer."""
    ours, theirs = _interleave(lambda: _run(HELP), lambda: _run(TYPER_ALONE), num_rounds)
    wall = median_ratio([cost.wall_s for cost in ours], [cost.wall_s for cost in theirs])
    cpu = median_ratio([cost.cpu_s for cost in ours], [cost.cpu_s for cost in theirs])
    return Report(
        rows=(_cost_row("mlxm --help", ours), _cost_row("python -c 'import typer'", theirs)),
        gates=(Gate.at_most("help_wall", wall, HELP_TARGET), Gate.at_most("help_cpu", cpu, HELP_TARGET)),
    )


def measure_list(num_rounds: int) -> Report:
    """`mlxm ls` against `mlxm --version`, which is how long any command of ours takes to begin."""
    with tempfile.TemporaryDirectory(prefix="mlxm-bench-") as folder:
        hub_cache = Path(folder) / "hub"
        fill_cache(hub_cache, NUM_MODELS)
        environ = os.environ | {"MLXM_HOME": str(Path(folder) / "home"), "HF_HUB_CACHE": str(hub_cache), "HOME": folder}
        _run(VERSION, environ)
        first = _run(LIST, environ)
        ours, theirs = _interleave(lambda: _run(LIST, environ), lambda: _run(VERSION, environ), num_rounds)
    beyond_s = median(mine.wall_s - base.wall_s for mine, base in zip(ours, theirs, strict=True))
    name = f"mlxm ls, {NUM_MODELS} models"
    return Report(
        rows=(_cost_row(f"{name}, first", [first]), _cost_row(name, ours), _cost_row("mlxm --version", theirs)),
        gates=(Gate.at_most("list_beyond_start_s", beyond_s, LIST_TARGET_S),),
    )


def measure_server(num_rounds: int) -> Report:
    """`mlxm serve` against `mlx_lm.server`, both on the built-in model's folder."""
    with tempfile.TemporaryDirectory(prefix="mlxm-bench-") as home:
        folder = build_builtin(Path(home))
        serve = Contender("mlxm serve", (MLXM, "serve"), "/ready", BUILTIN_NAME)
        peer_command = (sys.executable, "-m", "mlx_lm.server", "--model", str(folder))
        peer = Contender("mlx_lm.server", peer_command, "/health", "default_model")
        ours, theirs = _interleave(lambda: _start(serve, home), lambda: _start(peer, home), num_rounds)
    ratio = median_ratio([start.ready_s for start in ours], [start.ready_s for start in theirs])
    return Report(
        rows=(_start_row(serve, ours), _start_row(peer, theirs)),
        gates=(Gate.at_most("server_ready", ratio, READY_TARGET),),
    )


def _interleave(ours: Callable[[], T], theirs: Callable[[], T], num_rounds: int) -> tuple[list[T], list[T]]:
    """Both in turn, with the order swapped every round, after one round that only warms the disk cache."""
    ours(), theirs()
    pairs: list[tuple[T, T]] = []
    for number in range(num_rounds):
        if number % 2:
            second = theirs()
            pairs.append((ours(), second))
        else:
            pairs.append((ours(), theirs()))
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _run(command: Sequence[str], environ: Mapping[str, str] | None = None) -> Cost:
    """Run a program to its end."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environ)
    _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    return Cost(wall_s=wall_s, cpu_s=usage.ru_utime + usage.ru_stime)


def _start(server: Contender, home: str) -> Start:
    """Start a server, ask it one thing, and end it."""
    port = _free_port()
    began = time.perf_counter()
    with _running([*server.command, "--port", str(port)], home) as process:
        _await_ready(process, port, server.ready_path)
        ready_s = time.perf_counter() - began
        _ask(port, server.model)
        return Start(ready_s=ready_s, answer_s=time.perf_counter() - began)


@contextmanager
def _running(command: Sequence[str], home: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server that is ended when it is no longer needed."""
    environment = os.environ | {"MLXM_HOME": home, "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(BOUND_S)


def _await_ready(process: subprocess.Popen[bytes], port: int, path: str) -> None:
    """Ask until the answer is 200."""
    deadline = time.monotonic() + BOUND_S
    while _status(port, path) != OK:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{process.args!r} never became ready")
        time.sleep(POLL_S)


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


def _ask(port: int, model: str) -> None:
    """One chat completion of one token."""
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
    connection = HTTPConnection("127.0.0.1", port, timeout=BOUND_S)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != OK:
        raise RuntimeError(f"{model} answered {response.status}: {response.read()!r}")
    connection.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _cost_row(name: str, costs: Sequence[Cost]) -> dict[str, Value]:
    wall_ms = median(cost.wall_s for cost in costs) * 1000
    cpu_ms = median(cost.cpu_s for cost in costs) * 1000
    return {"measured": name, "rounds": len(costs), "wall_ms": round(wall_ms, 1), "cpu_ms": round(cpu_ms, 1)}


def _start_row(server: Contender, starts: Sequence[Start]) -> dict[str, Value]:
    return {
        "measured": server.name,
        "rounds": len(starts),
        "ready_means": f"first 200 of {server.ready_path}",
        "ready_s": round(median(start.ready_s for start in starts), 3),
        "answer_s": round(median(start.answer_s for start in starts), 3),
    }


if __name__ == "__main__":
    sys.exit(run_benchmark("startup", measure))
