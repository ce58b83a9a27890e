"""What `mlxm doctor` looks at, and what it makes of it.

Each check is a pure function of the probes, so that every finding can be shown on any machine.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from mlxm.errors import MlxmError
from mlxm.pool.probe import DeviceReport

MIB = 1024**2
GIB = 1024**3
MIN_FREE_MEMORY_BYTES = GIB
MIN_FREE_MODELS_BYTES = 5 * GIB
MIN_FREE_HOME_BYTES = GIB

Status = Literal["ok", "warn", "fail"]


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One finding; `fix` says what to do and is None when there is nothing to do."""

    name: str
    status: Status
    detail: str
    fix: str | None = None


@dataclass(frozen=True, slots=True)
class MemoryReading:
    """The machine's memory, and what is left of it."""

    total_bytes: int
    available_bytes: int


@dataclass(frozen=True, slots=True)
class FolderReading:
    """A folder, made or not; `used_bytes` is what lies in it and `free_bytes` what its disk has left."""

    path: Path
    exists: bool
    writable: bool
    used_bytes: int
    free_bytes: int
    others_may_write: bool = False


@dataclass(frozen=True, slots=True)
class Listener:
    """A process that listens on a port; its name is None where the system keeps it to itself."""

    name: str | None
    pid: int | None
    is_ours: bool

    def describe(self) -> str:
        """The process in words."""
        return "another program" if self.name is None else f"{self.name} (pid {self.pid})"


@dataclass(frozen=True, slots=True)
class PortReading:
    """Whether a server could listen at an address; `refusal` is the system's word when nobody listens there."""

    host: str
    port: int
    listener: Listener | None = None
    refusal: str | None = None


@dataclass(frozen=True, slots=True)
class DatabaseReading:
    """The state of the database file: steps to come, steps of a newer mlxm, what is damaged, why it cannot be read."""

    path: Path
    exists: bool
    num_pending: int = 0
    unknown: tuple[str, ...] = ()
    damage: str | None = None
    error: MlxmError | None = None


@dataclass(frozen=True, slots=True)
class ConfigReading:
    """The state of the settings file and of the variables that add to it."""

    path: Path
    exists: bool
    error: MlxmError | None = None


@dataclass(frozen=True, slots=True)
class Probes:
    """Everything a check may ask the machine."""

    device: Callable[[], DeviceReport]
    memory: Callable[[], MemoryReading]
    hub_cache: Callable[[], FolderReading]
    hub_token: Callable[[], str | None]
    port: Callable[[], PortReading]
    home: Callable[[], FolderReading]
    database: Callable[[], DatabaseReading]
    config: Callable[[], ConfigReading]
    versions: Callable[[], dict[str, str | None]]
    mlx_backends: Callable[[], tuple[str, ...]]


def needs_fixing(check: Check) -> bool:
    """Whether a person should do something about a finding."""
    return check.status == "fail" or (check.status == "warn" and check.fix is not None)


def check_config(reading: ConfigReading) -> Check:
    """Whether the settings are valid."""
    if reading.error is not None:
        fix = reading.error.hint if reading.error.hint is not None else "mlxm config edit"
        return Check(name="config", status="fail", detail=reading.error.message, fix=fix)
    detail = f"{show_path(reading.path)} is valid" if reading.exists else f"defaults; no {show_path(reading.path)} yet"
    return Check(name="config", status="ok", detail=detail)


def check_device(report: DeviceReport) -> Check:
    """Whether MLX works here, and on what."""
    if report.error is not None:
        fix = "mlxm config unset worker.blas, where that is set; otherwise pip install --force-reinstall mlx"
        return Check(name="mlx", status="fail", detail=report.error, fix=fix)
    name = "" if report.device_name is None else f" ({report.device_name})"
    return Check(name="mlx", status="ok", detail=f"{report.mlx_version} on {report.device}{name}")


def check_blas(report: DeviceReport) -> Check:
    """Whether matrices are multiplied fast where the CPU does it."""
    blas = report.blas
    if blas is None:
        reason = "not used on this machine" if report.error is None else "not measured"
        return Check(name="blas", status="ok", detail=reason)
    speed = f"{blas.name}, {blas.gflops:.3g} GFLOP/s"
    if not blas.is_reference:
        return Check(name="blas", status="ok", detail=speed)
    return Check(
        name="blas",
        status="warn",
        detail=f"{speed}: models run many times slower than they could",
        fix="apt install libopenblas0 and leave worker.blas at auto, or set it to the path of a fast BLAS library",
    )


def check_memory(reading: MemoryReading, wired_limit_bytes: int | None) -> Check:
    """Whether there is memory for a model."""
    detail = f"{show_size(reading.available_bytes)} of {show_size(reading.total_bytes)} available"
    if wired_limit_bytes is not None:
        detail += f", {show_size(wired_limit_bytes)} may be wired for the GPU"
    if reading.available_bytes < MIN_FREE_MEMORY_BYTES:
        return Check(name="memory", status="warn", detail=detail, fix="close other programs")
    return Check(name="memory", status="ok", detail=detail)


def check_hub_cache(reading: FolderReading) -> Check:
    """Whether models can be kept."""
    elsewhere = "set HF_HUB_CACHE to a folder"
    if not reading.writable:
        return _unwritable("hub cache", reading, f"make it writable, or {elsewhere} that is")
    state = f"{show_size(reading.used_bytes)} in" if reading.exists else "nothing yet in"
    detail = f"{state} {show_path(reading.path)}, {show_size(reading.free_bytes)} free"
    if reading.free_bytes < MIN_FREE_MODELS_BYTES:
        fix = f"free some space, or {elsewhere} on a larger disk"
        return Check(name="hub cache", status="warn", detail=detail, fix=fix)
    return Check(name="hub cache", status="ok", detail=detail)


def check_hub_token(source: str | None) -> Check:
    """Whether gated models can be downloaded; most people never need one, so that no token is no fault."""
    detail = f"found in {source}" if source is not None else "none; gated models need one: hf auth login"
    return Check(name="hub token", status="ok", detail=detail)


def check_port(reading: PortReading) -> Check:
    """Whether the server can listen where the settings say."""
    address = f"{reading.host}:{reading.port}"
    other = "stop it, or choose another port: mlxm config set server.port NUMBER"
    listener = reading.listener
    if reading.refusal is not None:
        fix = "choose another address: mlxm config set server.host ADDRESS"
        return Check(name="port", status="fail", detail=f"cannot listen on {address}: {reading.refusal}", fix=fix)
    if listener is None:
        return Check(name="port", status="ok", detail=f"{address} is free")
    if listener.is_ours:
        return Check(name="port", status="ok", detail=f"{address} is served by mlxm (pid {listener.pid})")
    return Check(name="port", status="fail", detail=f"{address} is used by {listener.describe()}", fix=other)


def check_home(reading: FolderReading) -> Check:
    """Whether mlxm can keep its own files."""
    if not reading.writable:
        return _unwritable("home", reading, "make it writable, or set MLXM_HOME to a folder that is")
    state = show_path(reading.path) if reading.exists else f"{show_path(reading.path)} will be made"
    detail = f"{state}, {show_size(reading.free_bytes)} free"
    if reading.free_bytes < MIN_FREE_HOME_BYTES:
        fix = "free some space, or set MLXM_HOME to a folder on a larger disk"
        return Check(name="home", status="warn", detail=detail, fix=fix)
    if reading.others_may_write:
        fix = f"chmod go-w {shlex.quote(str(reading.path))}"
        return Check(name="home", status="warn", detail=f"others can write to {state}", fix=fix)
    return Check(name="home", status="ok", detail=detail)


def check_database(reading: DatabaseReading) -> Check:
    """Whether what was stored can be read."""
    detail, fix = _database_fault(reading)
    if detail is not None:
        return Check(name="database", status="fail", detail=detail, fix=fix)
    if not reading.exists:
        return Check(name="database", status="ok", detail="not made yet")
    if reading.num_pending:
        steps = "1 step" if reading.num_pending == 1 else f"{reading.num_pending} steps"
        return Check(name="database", status="ok", detail=f"sound; the next server brings it up to date ({steps})")
    return Check(name="database", status="ok", detail="sound and up to date")


def _database_fault(reading: DatabaseReading) -> tuple[str | None, str]:
    """What is wrong with the database, and the way out."""
    aside = f"restore a backup, or move {show_path(reading.path)} away to start with an empty one"
    if reading.error is not None:
        return reading.error.message, reading.error.hint if reading.error.hint is not None else aside
    if reading.damage is not None:
        return f"{show_path(reading.path)} is damaged: {reading.damage}", aside
    if reading.unknown:
        return f"written by a newer mlxm ({', '.join(reading.unknown)})", "update mlxm"
    return None, aside


def check_versions(versions: dict[str, str | None]) -> Check:
    """Whether every package is there that the work rests on."""
    missing = [name for name, version in versions.items() if version is None]
    if missing:
        fix = f"pip install {' '.join(missing)}"
        return Check(name="packages", status="fail", detail=f"missing: {', '.join(missing)}", fix=fix)
    detail = ", ".join(f"{name} {version}" for name, version in versions.items())
    return Check(name="packages", status="ok", detail=detail)


def show_size(size_bytes: int) -> str:
    """A size as people say it."""
    return f"{size_bytes / GIB:.1f} GiB" if size_bytes >= GIB else f"{size_bytes / MIB:.0f} MiB"


def show_path(path: Path) -> str:
    """A path as people write it."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


def _unwritable(name: str, reading: FolderReading, fix: str) -> Check:
    """A folder that cannot be written to."""
    return Check(name=name, status="fail", detail=f"cannot write to {show_path(reading.path)}", fix=fix)
