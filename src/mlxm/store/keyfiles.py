"""The two files from which the key of all secrets is derived; they live beside the database, not in it.

A broken file (gone, or of the wrong size) costs the values. One that others could read is refused, and costs a chmod.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from mlxm.errors import SecretUnreadable
from mlxm.store import private
from mlxm.store.failures import translated

_SALT_BYTES = 16
_SECRET_BYTES = 32


class _BrokenError(Exception):
    """A file is gone or has the wrong size."""


class KeyFiles:
    """`salt` and `secret` in a home; every method blocks, and raises SecretUnreadable for files it must refuse."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._salt = home / "salt"
        self._secret = home / "secret"

    def are_broken(self) -> bool:
        """Whether the values encrypted with these files are lost."""
        try:
            self._read()
        except _BrokenError:
            return True
        return False

    def mend(self) -> None:
        """Make what is missing and replace what has the wrong size; whole files stay."""
        private.make_folder(self._home)
        private.check_folder(self._home)
        for path, size_bytes in ((self._salt, _SALT_BYTES), (self._secret, _SECRET_BYTES)):
            content = private.read_file(path, size_bytes + 1)
            if content is not None and len(content) != size_bytes:
                with translated(path):
                    path.unlink()
            private.make_file(path, os.urandom(size_bytes))

    def derive(self, iterations: int, names: Iterable[str]) -> bytes:
        """The Fernet key, after a good part of a second; an error says that the values `names` are lost."""
        try:
            salt, secret = self._read()
        except _BrokenError as error:
            raise lost(str(error), names) from error
        return base64.urlsafe_b64encode(hashlib.pbkdf2_hmac("sha256", secret, salt, iterations))

    def _read(self) -> tuple[bytes, bytes]:
        private.check_folder(self._home)
        return _whole(self._salt, _SALT_BYTES), _whole(self._secret, _SECRET_BYTES)


def lost(reason: str, names: Iterable[str]) -> SecretUnreadable:
    """The error for values that cannot be decrypted any more, with what to enter again."""
    listed = ", ".join(names) or "none"
    return SecretUnreadable(
        f"{reason}. Stored values that cannot be read: {listed}.",
        hint=f"Put the right file back from a backup, or reset the secrets and enter again: {listed}.",
    )


def _whole(path: Path, size_bytes: int) -> bytes:
    content = private.read_file(path, size_bytes + 1)
    if content is None:
        raise _BrokenError(f"{path} is gone")
    if len(content) != size_bytes:
        raise _BrokenError(f"{path} does not have the {size_bytes} bytes that it should")
    return content
