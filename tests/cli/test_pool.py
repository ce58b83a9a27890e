import json
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any, Self

import pytest

from mlxm.cli import ps, stop
from mlxm.cli.pool import cells_of, failure_of, footer_of
from mlxm.errors import ModelBroken, NotFound
from mlxm.pool.status import ModelStatus, PoolStatus
from tests.cli.model_cache import Cabinet, check_golden
from tests.cli.test_models_pull import serving

GB = 1000**3
READY = ModelStatus(
    model="mlx-community/Qwen3-4B-4bit",
    state="ready",
    kind="paged in place",
    pid=4711,
    reserved_bytes=4 * GB,
    memory_bytes=3_100_000_000,
    resident_bytes=3_300_000_000,
    cpu_percent=87.4,
    context=32768,
    blocks_used=120,
    blocks_total=1024,
    running=3,
    waiting=1,
    in_use=4,
    requests=211,
    tokens_per_s=142.3,
    ttft_p50_s=0.2104,
    uptime_s=3725.0,
)
LOADING = ModelStatus(
    model="mlx-community/Qwen3-VL-8B-4bit",
    state="loading",
    pinned=True,
    reserved_bytes=7 * GB,
    in_use=1,
    done_bytes=2 * GB,
    total_bytes=5 * GB,
)
IDLE = ModelStatus(
    model="mlxm/tiny", state="ready", reserved_bytes=GB // 10, expires_s=581.0, blocks_used=0, blocks_total=64
)
BROKEN = ModelStatus(model="me/own", state="broken", reason="me/own is broken, it died 5 times.", code="model_broken")
POOL = PoolStatus(
    budget_bytes=26 * GB,
    reserved_bytes=11 * GB,
    others_bytes=2 * GB,
    pressure="warning",
    models=(READY, LOADING, IDLE, BROKEN),
)


class FakeServer:
    """A server that says what it is told to."""

    url = "http://127.0.0.1:1"

    def __init__(self, pool: PoolStatus = POOL, rows: tuple[ModelStatus, ...] = ()) -> None:
        self.answer = pool
        self.rows = list(rows)
        self.asked: list[Any] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is open."""

    def pool(self) -> PoolStatus:
        """What is loaded."""
        self.asked.append("pool")
        return self.answer

    def model(self, _name: str) -> ModelStatus:
        """The next state of a model."""
        return self.rows.pop(0)

    def load(self, name: str, **how: Any) -> ModelStatus:
        """The first state of a model."""
        self.asked.append((name, how))
        return self.rows.pop(0)

    def restart(self, name: str, *, now: bool) -> ModelStatus:
        """The first state of a model."""
        self.asked.append((name, now))
        return self.rows.pop(0)

    def unload(self, name: str | None, *, now: bool) -> PoolStatus:
        """All are gone."""
        self.asked.append((name, now))
        return PoolStatus(budget_bytes=0, reserved_bytes=0, others_bytes=0, pressure="normal", models=())


@pytest.fixture
def meet(monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeServer], FakeServer]:
    """Let commands find a server."""

    def let(server: FakeServer) -> FakeServer:
        monkeypatch.setattr("mlxm.remote.find_server", lambda _home: server)
        monkeypatch.setattr("mlxm.cli.pool._POLL_S", 0.0)
        return server

    return let


@pytest.mark.parametrize(
    "args", [["ps"], ["load", "mlxm/tiny"], ["unload", "--all"], ["restart", "mlxm/tiny"], ["stop"]]
)
def test_without_a_server_every_command_says_so(cabinet: Cabinet, args: list[str]) -> None:
    """Plainly, with the way to have one."""
    ran = cabinet.run(*args)
    assert (ran.code, ran.out) == (5, "")
    assert re.match(r"error: No server is running[.,]", ran.err)
    assert "hint: Start one with: mlxm serve" in ran.err


def test_what_is_loaded_is_a_table(cabinet: Cabinet, meet: Callable[[FakeServer], FakeServer]) -> None:
    """Whole in a pipe, and as wide as the terminal there; what went wrong stands below."""
    meet(FakeServer())
    ran = cabinet.run("ps")
    assert ran.code == 0
    check_golden("ps.piped.txt", ran.out)
    check_golden("ps.120.txt", cabinet.show("ps", columns=120))
    check_golden("ps.80.txt", cabinet.show("ps", columns=80))
    assert ran.err == (
        "me/own: me/own is broken, it died 5 times.\n"
        "13.0 GB of 26.0 GB taken, 2.0 GB of it by other processes  ███████░░░░░░░  50%; "
        "this machine is short of memory (warning)\n"
    )
    rows = json.loads(cabinet.run("ps", "--json").out)["models"]
    assert [row["state"] for row in rows] == ["ready", "loading", "ready", "broken"]


def test_nothing_loaded_is_told(cabinet: Cabinet, meet: Callable[[FakeServer], FakeServer]) -> None:
    """With what would load something."""
    meet(FakeServer(PoolStatus(budget_bytes=0, reserved_bytes=0, others_bytes=0, pressure="normal", models=())))
    ran = cabinet.run("ps")
    assert ran.out == ""
    assert ran.err.startswith("No model is loaded. The first request for one loads it.\n")


@pytest.mark.parametrize("as_json", [True, False])
def test_watching_in_a_pipe_prints_again_and_again(
    cabinet: Cabinet,
    meet: Callable[[FakeServer], FakeServer],
    monkeypatch: pytest.MonkeyPatch,
    as_json: bool,  # noqa: FBT001
) -> None:
    """Until Ctrl-C."""
    server = meet(FakeServer())
    naps = iter([None, None])

    def nap(_seconds: float) -> None:
        if next(naps, "over") == "over":
            raise KeyboardInterrupt

    monkeypatch.setattr(ps.time, "sleep", nap)
    ran = cabinet.run("ps", "--watch", *(["--json"] if as_json else []))
    assert ran.code == 130
    assert server.asked == ["pool"] * 3
    assert ran.out.count("mlxm/tiny") == 3


def test_watching_on_a_terminal_draws_in_place(
    cabinet: Cabinet, meet: Callable[[FakeServer], FakeServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the budget below the table."""
    meet(FakeServer())
    naps = iter([None])

    def nap(_seconds: float) -> None:
        if next(naps, "over") == "over":
            sys.exit(0)

    monkeypatch.setattr(ps.time, "sleep", nap)
    with pytest.raises(SystemExit):
        cabinet.show("ps", "--watch", columns=120)


def test_a_load_is_waited_for(cabinet: Cabinet, meet: Callable[[FakeServer], FakeServer]) -> None:
    """And tells how long the model stays; the options go along."""
    server = meet(FakeServer(rows=(LOADING, LOADING, IDLE)))
    ran = cabinet.run("load", "mlxm/tiny", "--ttl", "10m", "--ctx", "32k")
    assert (ran.code, ran.out) == (0, "mlxm/tiny is loaded: 100 MB, for 9 min 41 s unused\n")
    assert server.asked == [("mlxm/tiny", {"pin": False, "ttl_s": 600.0, "ctx": 32768})]
    server.rows = [READY]
    row = json.loads(cabinet.run("load", "x/y", "--pin", "--json", "--ttl", "90s").out)
    assert (row["state"], server.asked[-1]) == ("ready", ("x/y", {"pin": True, "ttl_s": 90.0, "ctx": None}))


def test_a_load_that_fails_says_why(cabinet: Cabinet, meet: Callable[[FakeServer], FakeServer]) -> None:
    """With the exit code of its kind."""
    server = meet(FakeServer(rows=(LOADING, BROKEN)))
    ran = cabinet.run("load", "me/own")
    assert (ran.code, ran.err) == (1, "error: me/own is broken, it died 5 times.\n")
    server.rows = [ModelStatus(model="a", state="failed", code="out_of_memory")]
    ran = cabinet.run("load", "a")
    assert (ran.code, ran.err) == (8, "error: a is not loaded.\n")


@pytest.mark.parametrize(
    "args",
    [
        ["load", "a", "--ttl", "soon"],
        ["load", "a", "--ctx", "much"],
        ["load", "a", "--ctx", "0"],
        ["load", "a", "--ttl", "-5"],
        ["load", "a", "--ttl", "infs"],
        ["load", "a", "--ttl", "nans"],
        ["unload"],
        ["unload", "a", "--all"],
    ],
)
def test_what_makes_no_sense_is_refused(cabinet: Cabinet, args: list[str]) -> None:
    """Before any server is asked."""
    ran = cabinet.run(*args)
    assert ran.code == 2
    assert "hint: " in ran.err


def test_a_restart_is_waited_for(cabinet: Cabinet, meet: Callable[[FakeServer], FakeServer]) -> None:
    """Then its new process is told."""
    server = meet(FakeServer(rows=(LOADING, READY)))
    assert cabinet.run("restart", "a", "--now").out == f"{READY.model} runs in a new process: {READY.pid}\n"
    assert server.asked == [("a", True)]


def test_unloading_tells_what_is_left(cabinet: Cabinet, meet: Callable[[FakeServer], FakeServer]) -> None:
    """Of one, or of all."""
    server = meet(FakeServer())
    assert cabinet.run("unload", "a/b").out.startswith("a/b is unloaded: 0 B of 0 B taken")
    assert cabinet.run("unload", "--all", "--now").out.startswith("Every model is unloaded")
    assert json.loads(cabinet.run("unload", "--all", "--json").out)["models"] == []
    assert server.asked == [("a/b", False), (None, True), (None, False)]


def test_cells_without_a_figure_have_a_dash() -> None:
    """A model on its way has hardly any."""
    assert cells_of(LOADING)[1:4] == ("loading 40%", "–", "–")
    assert cells_of(IDLE)[-2] == "in 9 min 41 s"
    assert "░" * 14 in footer_of(
        PoolStatus(budget_bytes=0, reserved_bytes=0, others_bytes=0, pressure="normal", models=())
    )


def test_a_running_server_takes_orders(cabinet: Cabinet) -> None:
    """Load, list, restart, unload, stop: with the built-in model, from one shell."""
    with serving(cabinet) as server:
        assert cabinet.run("load", "mlxm/tiny", "--pin").out.endswith("pinned\n")
        before = json.loads(cabinet.run("ps", "--json").out)["models"][0]
        assert (before["state"], before["pinned"], before["in_use"]) == ("ready", True, 0)
        assert cabinet.run("ps").out.count("\n") == 2
        row = json.loads(cabinet.run("restart", "mlxm/tiny", "--json").out)
        assert row["pid"] != before["pid"]
        assert cabinet.run("unload", "mlxm/tiny", "--now").code == 0
        assert cabinet.run("unload", "mlxm/tiny").code == 4
        ran = cabinet.run("load", "nobody/nothing")
        assert (ran.code, ran.err.splitlines()[0]) == (4, "error: There is no model 'nobody/nothing'.")
        with pytest.raises(NotFound):
            server.model("mlxm/tiny")
        assert cabinet.run("stop").out.endswith("has ended.\n")
    assert cabinet.run("ps").code == 5


def test_stopping_waits_for_the_end_or_insists(cabinet: Cabinet, monkeypatch: pytest.MonkeyPatch) -> None:
    """One signal asks, a second one insists; that it takes a while is told."""
    monkeypatch.setattr(stop, "_NOTE_S", 0.1)
    program = (
        "import signal, sys, time\nfrom pathlib import Path\nfrom mlxm.store.lock import HomeLock\n"
        "heard = []\nsignal.signal(signal.SIGTERM, lambda *_: heard.append(1))\n"
        "with HomeLock(Path(sys.argv[1])):\n  print('up', flush=True)\n"
        "  while len(heard) < int(sys.argv[2]): time.sleep(0.01)\n  time.sleep(float(sys.argv[3]))\n"
    )
    for args, num_signals, linger_s, note in (
        (["stop"], 1, 0.5, "mlxm stop --now"),
        (["stop", "--now"], 2, 0.0, ""),
    ):
        command = [sys.executable, "-c", program, str(cabinet.home), str(num_signals), str(linger_s)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "up\n"
            ran = cabinet.run(*args)
            assert ran.out == f"The server (pid {holder.pid}) has ended.\n"
            assert note in ran.err
            assert holder.wait(10) == 0


def test_errors_keep_their_kind() -> None:
    """As the server has named them."""
    assert isinstance(failure_of(BROKEN), ModelBroken)
