"""How commands find the server of a home, and prove to it that they are its owner's: two private files beside its lock.

The token is a new one for every run of a server. Files that a killed server left are harmless: the lock says who lives.
"""

from __future__ import annotations

import secrets
from contextlib import suppress
from pathlib import Path

import msgspec

from mlxm.store import private
from mlxm.store.failures import translated
from mlxm.store.lock import home_status

UNIX_SCHEME = "unix:"
"""How the URL of a server begins that listens on a socket with a path."""
_FILE_OF_TOKEN = "control-token"  # noqa: S105  # the name of the file, not what is in it
_FILE_OF_URL = "url"
_MAX_BYTES = 4096
_TOKEN_BYTES = 32


class Control(msgspec.Struct, frozen=True):
    """Where a server listens, and the token that opens its management routes."""

    url: str
    token: str


def new_control(url: str) -> Control:
    """A new token for a server at `url`."""
    return Control(url=url, token=secrets.token_urlsafe(_TOKEN_BYTES))


def publish_control(home: Path, control: Control) -> None:
    """Write both files; for the process that holds the home's lock. Blocks; raises StoreError."""
    withdraw_control(home)
    private.make_file(_folder(home) / _FILE_OF_URL, f"{control.url}\n".encode())
    private.make_file(_folder(home) / _FILE_OF_TOKEN, f"{control.token}\n".encode())


def withdraw_control(home: Path) -> None:
    """Remove both files. Blocks; raises StoreError."""
    for name in (_FILE_OF_TOKEN, _FILE_OF_URL):
        with translated(_folder(home) / name), suppress(FileNotFoundError):
            (_folder(home) / name).unlink()


def read_control(home: Path) -> Control | None:
    """The running server of a home, or None; SecretUnreadable when others could have read its token. Blocks."""
    if not home_status(home).held:
        return None
    token, url = (private.read_file(_folder(home) / name, _MAX_BYTES) for name in (_FILE_OF_TOKEN, _FILE_OF_URL))
    return None if token is None or url is None else Control(url=url.decode().strip(), token=token.decode().strip())


def _folder(home: Path) -> Path:
    return home / "run"
