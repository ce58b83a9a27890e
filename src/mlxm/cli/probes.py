"""How `mlxm doctor` reads the machine: thin, judging nothing, changing nothing.

The device is probed in a child process, because only workers import MLX; packages are asked for, never imported.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import shutil
import socket
import sqlite3
import stat
from contextlib import closing, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from mlxm.cli.checks import ConfigReading, DatabaseReading, FolderReading, Listener, MemoryReading, PortReading, Probes
from mlxm.cli.mlx_backends import find_mlx_backends
from mlxm.errors import ConfigInvalid, StoreError
from mlxm.pool.probe import probe_device
from mlxm.settings import Settings, home_folder, load_settings
from mlxm.store.failures import translated
from mlxm.store.lock import home_status
from mlxm.store.migrations import MIGRATIONS, applied

PACKAGES = ("mlx", "mlx-lm", "mlx-vlm", "mlx-embeddings", "transformers", "huggingface-hub", "litestar", "granian")
TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def make_probes() -> Probes:
    """Probes of this machine, as far as the settings say where to look."""
    settings, config = read_config()
    server, home = settings.server, settings.home
    return Probes(
        config=lambda: config,
        versions=read_versions,
        mlx_backends=find_mlx_backends,
        device=lambda: probe_device(blas=settings.worker.blas),
        memory=read_memory,
        hub_cache=read_hub_cache,
        hub_token=find_hub_token,
        port=lambda: read_port(server.host, server.port, find_server(home)),
        home=lambda: read_folder(home),
        database=lambda: read_database(home / "mlxm.db"),
    )


def read_config() -> tuple[Settings, ConfigReading]:
    """The settings, or the defaults where they are not valid, so that everything else is still looked at."""
    try:
        settings, error = load_settings(), None
    except ConfigInvalid as invalid:
        # An empty MLXM_HOME is one of the mistakes that are being reported.
        home = home_folder({name: value for name, value in os.environ.items() if value})
        settings, error = Settings.from_layers(home, [], {}), invalid
    path = settings.config_path
    return settings, ConfigReading(path=path, exists=path.exists(), error=error)


def find_server(home: Path) -> int | None:
    """The pid of the server that holds a home, where that can be read."""
    try:
        return home_status(home).pid
    except StoreError:  # the check of the home says what is wrong with it
        return None


def read_memory() -> MemoryReading:
    """The machine's memory."""
    memory = psutil.virtual_memory()
    return MemoryReading(total_bytes=memory.total, available_bytes=memory.available)


def read_folder(path: Path) -> FolderReading:
    """A folder, or the one in which it would be made."""
    standing = next(place for place in (path, *path.absolute().parents) if place.exists())
    return FolderReading(
        path=path,
        exists=path.is_dir(),
        writable=standing.is_dir() and os.access(standing, os.W_OK | os.X_OK),
        used_bytes=_count_bytes(path),
        free_bytes=shutil.disk_usage(standing).free,
        others_may_write=path.is_dir() and bool(path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)),
    )


def read_hub_cache() -> FolderReading:
    """The folder that models are kept in."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return read_folder(Path(HF_HUB_CACHE))


def find_hub_token() -> str | None:
    """Where a Hub token is found; the token itself is left there."""
    from huggingface_hub.constants import HF_TOKEN_PATH

    for variable in TOKEN_VARIABLES:
        if os.environ.get(variable):
            return variable
    path = Path(HF_TOKEN_PATH)
    return str(path) if path.is_file() and path.stat().st_size else None


def read_port(host: str, port: int, server_pid: int | None) -> PortReading:
    """Whether an address can be listened at, by listening there for an instant."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        if not ipaddress.ip_address(address[0]).is_loopback:
            return PortReading(host=host, port=port, refusal="without keys the server listens on this machine only")
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
    except UnicodeError:
        return PortReading(host=host, port=port, refusal="this is no name that a machine can have")
    except OSError as error:
        return _explain_refusal(host, port, server_pid, error)
    return PortReading(host=host, port=port)


def _explain_refusal(host: str, port: int, server_pid: int | None, error: OSError) -> PortReading:
    """Who or what is in the way."""
    if error.errno == errno.EADDRINUSE:
        return PortReading(host=host, port=port, listener=find_listener(port, server_pid))
    return PortReading(host=host, port=port, refusal=error.strerror)


def find_listener(port: int, server_pid: int | None) -> Listener:
    """Who listens at a port, as far as the system tells this user."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if any(
                link.status == psutil.CONN_LISTEN and link.laddr.port == port for link in process.net_connections("tcp")
            ):
                return Listener(name=process.name(), pid=process.pid, is_ours=process.pid == server_pid)
    return Listener(name=None, pid=None, is_ours=False)


def read_database(path: Path) -> DatabaseReading:
    """The database as it lies there: nothing is upgraded, and a running server is not disturbed."""
    if not path.exists():
        return DatabaseReading(path=path, exists=False)
    try:
        with translated(path), closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            done = applied(connection)
    except StoreError as error:
        return DatabaseReading(path=path, exists=True, error=error)
    known = {migration.__name__ for migration in MIGRATIONS}
    return DatabaseReading(
        path=path,
        exists=True,
        num_pending=len(known - done),
        unknown=tuple(sorted(done - known)),
        damage=None if verdict == "ok" else verdict,
    )


def read_versions() -> dict[str, str | None]:
    """The versions of the packages that the work rests on; None for those that are missing."""
    return {name: _read_version(name) for name in PACKAGES}


def _read_version(package: str) -> str | None:
    """A package's version by its metadata."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _count_bytes(folder: Path) -> int:
    """What the files below a folder take; links count as themselves, what cannot be read not at all."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_size  # noqa: PTH118  # a cache has many thousand files
    return total
