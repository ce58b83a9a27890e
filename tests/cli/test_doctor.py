import json
import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import typer

from mlxm.cli.checks import ConfigReading, DatabaseReading, FolderReading, MemoryReading, PortReading, Probes
from mlxm.cli.doctor import report
from mlxm.cli.probes import (
    PACKAGES,
    find_hub_token,
    find_listener,
    make_probes,
    read_database,
    read_folder,
    read_memory,
    read_port,
    read_versions,
)
from mlxm.errors import ConfigInvalid
from mlxm.pool.probe import BlasReport, DeviceReport
from mlxm.store.migrations import MIGRATIONS, upgrade

NAMES = [
    "config",
    "packages",
    "mlx backend",
    "mlx",
    "blas",
    "memory",
    "hub cache",
    "hub token",
    "port",
    "home",
    "database",
]


@pytest.fixture
def healthy() -> Probes:
    """Probes of a machine that needs nothing."""
    folder = FolderReading(path=Path("/srv"), exists=True, writable=True, used_bytes=0, free_bytes=1 << 40)
    blas = BlasReport(name="openblas", path="/usr/lib/libopenblas.so.0", gflops=120.0, is_reference=False)
    device = DeviceReport(
        mlx_version="0.32.4",
        device="cpu",
        device_name="cpu",
        memory_bytes=1 << 34,
        wired_limit_bytes=None,
        blas=blas,
        error=None,
    )
    return Probes(
        config=lambda: ConfigReading(path=Path("/srv/config.toml"), exists=True),
        versions=lambda: {"mlx": "0.32.4"},
        mlx_backends=lambda: ("mlx-cpu",),
        device=lambda: device,
        memory=lambda: MemoryReading(total_bytes=1 << 34, available_bytes=1 << 33),
        hub_cache=lambda: folder,
        hub_token=lambda: None,
        port=lambda: PortReading(host="127.0.0.1", port=6596),
        home=lambda: folder,
        database=lambda: DatabaseReading(path=Path("/srv/mlxm.db"), exists=True),
    )


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    """A socket of this process that listens on a port of its own."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def test_healthy_machine_is_one_line_each_and_all_well(healthy: Probes, capsys: pytest.CaptureFixture[str]) -> None:
    """Findings are the result; the verdict is for people."""
    report(healthy, as_json=False)

    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert [line[6:17].rstrip() for line in lines] == NAMES
    assert all(line.startswith("ok    ") for line in lines)
    assert printed.err == "\nAll is well.\n"


def test_faults_are_shown_with_their_fix_and_end_with_10(healthy: Probes, capsys: pytest.CaptureFixture[str]) -> None:
    """A script can ask whether there is something to fix."""
    broken = replace(healthy, port=lambda: PortReading(host="localhost", port=80, refusal="Permission denied"))
    with pytest.raises(typer.Exit) as ended:
        report(broken, as_json=False)

    printed = capsys.readouterr()
    assert ended.value.exit_code == 10
    assert "fail  port         cannot listen on localhost:80: Permission denied\n" in printed.out
    assert "\n                   fix: choose another address: mlxm config set server.host ADDRESS\n" in printed.out
    assert printed.err == "\n1 of 11 to fix.\n"


def test_json_is_a_list_of_findings(healthy: Probes, capsys: pytest.CaptureFixture[str]) -> None:
    """Programs get name, status, detail and fix of every check, and the same exit code."""
    wrong = ConfigInvalid("Line 3.", hint="Correct it.")
    broken = replace(healthy, config=lambda: ConfigReading(path=Path("/srv/config.toml"), exists=True, error=wrong))
    with pytest.raises(typer.Exit) as ended:
        report(broken, as_json=True)

    printed = capsys.readouterr()
    findings = json.loads(printed.out)
    assert ended.value.exit_code == 10
    assert printed.err == ""
    assert [finding["name"] for finding in findings] == NAMES
    assert findings[0] == {"name": "config", "status": "fail", "detail": "Line 3.", "fix": "Correct it."}
    assert findings[1]["fix"] is None


def test_details_of_many_lines_stay_behind_the_names(healthy: Probes, capsys: pytest.CaptureFixture[str]) -> None:
    """The names are a column of their own."""
    wrong = ConfigInvalid("Line 3.\nLine 4.", hint="Correct\nboth.")
    broken = replace(healthy, config=lambda: ConfigReading(path=Path("/srv/config.toml"), exists=True, error=wrong))
    with pytest.raises(typer.Exit):
        report(broken, as_json=False)

    indent = " " * 19
    assert capsys.readouterr().out.startswith(
        f"fail  config       Line 3.\n{indent}Line 4.\n{indent}fix: Correct\n{indent}both.\n"
    )


def test_details_wrap_on_a_terminal(
    healthy: Probes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A long line is broken between words within the window."""
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    report(replace(healthy, versions=lambda: dict.fromkeys(PACKAGES, "1.2.3")), as_json=False)

    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60
    assert len(lines) > len(NAMES)


def test_command_looks_at_this_machine(
    run_mlxm: Callable[..., subprocess.CompletedProcess[str]], user_home: Path
) -> None:
    """The real probes find MLX in a child process, and nothing is made in the home."""
    done = run_mlxm("doctor", "--json", HF_TOKEN="hf_made_up")
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)}

    assert list(findings) == NAMES
    assert findings["mlx"]["status"] == "ok"
    assert findings["hub token"]["detail"] == "found in HF_TOKEN"
    assert "hf_made_up" not in done.stdout + done.stderr
    assert findings["database"]["detail"] == "not made yet"
    assert done.returncode == (10 if any(finding["fix"] for finding in findings.values()) else 0)
    assert list(user_home.iterdir()) == []


def test_invalid_config_does_not_stop_the_other_checks(user_home: Path) -> None:
    """The settings' complaint is one finding; the defaults serve for the rest."""
    (user_home / ".mlxm").mkdir()
    (user_home / ".mlxm" / "config.toml").write_text("[server]\nprot = 1\n")
    probes = make_probes()

    error = probes.config().error
    assert error is not None
    assert "server.prot" in error.message
    assert probes.port().port == 6596
    assert probes.home().path == user_home / ".mlxm"


def test_empty_home_variable_is_a_finding_too(user_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even then the usual home is looked at."""
    monkeypatch.setenv("MLXM_HOME", "")
    probes = make_probes()

    assert probes.config().error is not None
    assert probes.home().path == user_home / ".mlxm"


def test_lock_that_cannot_be_read_does_not_stop_the_port_check(user_home: Path) -> None:
    """Whose server it is remains unknown then."""
    (user_home / ".mlxm" / "run").mkdir(parents=True)
    (user_home / ".mlxm" / "run" / "server.lock").symlink_to("/nowhere")

    assert make_probes().port().port == 6596


def test_memory_is_that_of_the_machine() -> None:
    """More cannot be available than there is."""
    reading = read_memory()

    assert 0 < reading.available_bytes <= reading.total_bytes == psutil.virtual_memory().total


def test_folder_is_read_with_its_size(tmp_path: Path) -> None:
    """Files below it count, links by themselves."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "weights").write_bytes(b"x" * 5000)
    (tmp_path / "link").symlink_to("deep/weights")
    reading = read_folder(tmp_path)

    assert (reading.exists, reading.writable) == (True, True)
    assert reading.used_bytes == 5000 + len("deep/weights")
    assert reading.free_bytes > 0


def test_folder_that_is_not_there_is_judged_by_the_one_it_would_be_made_in(tmp_path: Path) -> None:
    """A first start makes what is missing."""
    reading = read_folder(tmp_path / "a" / "b")

    assert (reading.exists, reading.writable, reading.used_bytes) == (False, True, 0)
    assert reading.free_bytes > 0


def test_folder_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    """A file in the way is found before anything is made."""
    (tmp_path / "file").touch()

    assert read_folder(tmp_path / "file" / "home").writable is False


def test_hub_cache_follows_the_hubs_own_variables(
    run_mlxm: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """HF_HUB_CACHE wins over HF_HOME, as for every other program."""
    home, cache = tmp_path / "hf", tmp_path / "cache"

    def find_cache(**env: str) -> str:
        findings = json.loads(run_mlxm("doctor", "--json", **env).stdout)
        return str(next(finding["detail"] for finding in findings if finding["name"] == "hub cache"))

    assert f" in {home}/hub, " in find_cache(HF_HOME=str(home))
    assert f" in {cache}, " in find_cache(HF_HOME=str(home), HF_HUB_CACHE=str(cache))


def test_hub_token_is_found_in_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A logged-in user has a file; an empty one is none."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    assert find_hub_token() is None

    (tmp_path / "token").touch()
    assert find_hub_token() is None

    (tmp_path / "token").write_text("hf_made_up")
    assert find_hub_token() == str(tmp_path / "token")


def test_free_port_stays_free() -> None:
    """Looking does not keep the port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

    assert read_port("127.0.0.1", port, None) == read_port("127.0.0.1", port, None) == PortReading("127.0.0.1", port)


def test_used_port_names_its_process(listening: socket.socket) -> None:
    """A person learns which program to stop."""
    listener = read_port("127.0.0.1", listening.getsockname()[1], None).listener

    assert listener is not None
    assert (listener.pid, listener.name) == (os.getpid(), psutil.Process().name())
    assert not listener.is_ours


def test_used_port_may_be_our_own_servers(listening: socket.socket) -> None:
    """The process that holds the home is the server itself."""
    listener = read_port("127.0.0.1", listening.getsockname()[1], os.getpid()).listener

    assert listener is not None
    assert listener.is_ours


def test_port_of_a_process_that_cannot_be_seen_has_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user's processes are not ours to look into."""

    class Hidden:
        def net_connections(self, kind: str) -> list[Any]:
            assert kind == "tcp"
            raise psutil.AccessDenied

    monkeypatch.setattr(psutil, "process_iter", lambda: [Hidden()])

    assert find_listener(1, None).name is None


@pytest.mark.parametrize("host", ["192.0.2.1", "0.0.0.0", "a..b", "a" * 64, "no-such-host.invalid"])  # noqa: S104
def test_address_that_the_server_cannot_take_is_refused_with_a_reason(host: str) -> None:
    """Another machine's, one beyond this machine, or none at all: `mlxm serve` would refuse it."""
    reading = read_port(host, 6596, None)

    assert reading.listener is None
    assert reading.refusal


def test_missing_database_is_not_made(tmp_path: Path) -> None:
    """Doctor looks only."""
    assert read_database(tmp_path / "mlxm.db").exists is False
    assert list(tmp_path.iterdir()) == []


def test_database_in_use_is_read_as_it_is(tmp_path: Path) -> None:
    """A running server is not disturbed, and an older schema is left for it to upgrade."""
    path = tmp_path / "mlxm.db"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    assert read_database(path) == DatabaseReading(path=path, exists=True, num_pending=len(MIGRATIONS))

    upgrade(connection)
    connection.execute("BEGIN IMMEDIATE")
    assert read_database(path) == DatabaseReading(path=path, exists=True)

    connection.execute("UPDATE _sqlite_migrations SET name = 'm900_later' WHERE name = ?", (MIGRATIONS[0].__name__,))
    connection.execute("COMMIT")
    assert read_database(path) == DatabaseReading(path=path, exists=True, num_pending=1, unknown=("m900_later",))
    connection.close()


def test_damaged_database_is_found(tmp_path: Path) -> None:
    """Bytes that were lost in the middle of a file show up before a request meets them."""
    path = tmp_path / "mlxm.db"
    connection = sqlite3.connect(path, isolation_level=None)
    upgrade(connection)
    connection.execute("CREATE TABLE t (x)")
    connection.execute(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 5000) INSERT INTO t SELECT i FROM n"
    )
    connection.close()
    content = bytearray(path.read_bytes())
    middle = len(content) // 2 // 4096 * 4096
    content[middle : middle + 4096] = bytes(4096)
    path.write_bytes(content)
    reading = read_database(path)

    assert reading.damage is not None or reading.error is not None


def test_file_that_is_no_database_is_an_error(tmp_path: Path) -> None:
    """SQLite's refusal becomes the store's words."""
    path = tmp_path / "mlxm.db"
    path.write_bytes(b"not a database" * 100)
    error = read_database(path).error

    assert error is not None
    assert str(path) in error.message


def test_versions_are_those_that_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that is missing is told, not skipped."""
    assert all(read_versions().values())

    monkeypatch.setattr("mlxm.cli.probes.PACKAGES", ("typer", "no-such-package-here"))
    assert read_versions() == {"typer": __import__("typer").__version__, "no-such-package-here": None}


def test_checking_loads_neither_mlx_nor_its_models() -> None:
    """Only a worker imports MLX; doctor asks one."""
    script = "import mlxm.cli.doctor, sys; mlxm.cli.probes.read_versions(); print(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)

    assert {"mlx", "mlx_lm", "mlx_vlm", "transformers"}.isdisjoint(done.stdout.splitlines())
