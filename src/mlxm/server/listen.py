"""The socket that the server listens on: opened early and by ourselves.

Clients that come before the server is ready wait in its queue instead of being refused. And a port that another
process has is noticed: the HTTP library would share it with whoever opened it the same way.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path

import msgspec

from mlxm.errors import ConfigInvalid, OpenWithoutKey, PortInUse

BACKLOG = 1024
MAX_PATH_BYTES = 103
"""What every system takes as the path of a socket."""


class Listener(msgspec.Struct, frozen=True, kw_only=True):
    """A process that listens on a port."""

    pid: int
    name: str


def open_listener(host: str, port: int) -> socket.socket:
    """A listening socket on loopback; OpenWithoutKey for any other address, PortInUse naming who has the port."""
    family, address = _resolve(host, port)
    if not ipaddress.ip_address(address[0]).is_loopback:
        raise OpenWithoutKey(
            f"The server does not listen on {host}: without keys, anyone who can reach it could use it.",
            hint="Listen on this machine only, with --host 127.0.0.1, and let a proxy check who comes from outside.",
        )
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise _refusal(error, host, port) from error
    return listener


def open_unix_listener(path: Path) -> socket.socket:
    """A listening socket at `path` for this user alone; PortInUse when another process listens there."""
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise ConfigInvalid(
            f"{path} is too long for a socket: {MAX_PATH_BYTES} bytes are the limit.", hint="Choose a shorter path."
        )
    _clear(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        listener.bind(os.fspath(path))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigInvalid(f"Cannot listen at {path}: {error.strerror}.", hint="Choose another path.") from error
    finally:
        os.umask(mask)
    return listener


def _clear(path: Path) -> None:
    """Remove the socket of a process that is gone."""
    try:
        is_socket = stat.S_ISSOCK(path.lstat().st_mode)
    except OSError:
        return  # what is wrong with it, binding will tell
    if not is_socket:
        raise ConfigInvalid(f"{path} is there and is no socket.", hint="Choose another path.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
        else:
            raise PortInUse(f"Another process listens at {path}.", hint="Stop it, or choose another path.")


def find_listener(port: int) -> Listener | None:
    """Who listens on a port, as far as the system tells this user."""
    import psutil  # noqa: PLC0415  # needed only when something is in the way

    for process in psutil.process_iter():
        with suppress(psutil.Error):
            links = process.net_connections("tcp")
            if any(link.status == psutil.CONN_LISTEN and link.laddr.port == port for link in links):
                return Listener(pid=process.pid, name=process.name())
    return None


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise ConfigInvalid(f"There is no address {host}.", hint="Use --host 127.0.0.1.") from error
    return family, (str(address[0]), port)


def _refusal(error: OSError, host: str, port: int) -> PortInUse | ConfigInvalid:
    if error.errno == errno.EADDRINUSE:
        holder = find_listener(port)
        who = "another program" if holder is None else f"{holder.name} (pid {holder.pid})"
        return PortInUse(f"Port {port} is in use by {who}.", hint=f"Stop it, or choose another: --port {port + 1}")
    return ConfigInvalid(
        f"Cannot listen on {host}, port {port}: {error.strerror}.", hint="Choose another address with --host or --port."
    )
