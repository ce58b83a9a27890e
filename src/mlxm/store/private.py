"""Folders and files that nobody but their owner may read.

Files are never followed through a symlink, never overwritten, and never visible half written.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from mlxm.errors import SecretUnreadable
from mlxm.store.failures import translated

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def make_folder(path: Path) -> None:
    """Make `path` with mode 0700 whatever the umask; an existing folder keeps its mode."""
    with translated(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
            path.chmod(0o700)


def make_empty(path: Path) -> None:
    """Make an empty file of mode 0600 at `path`, unless something is there already."""
    with translated(path), suppress(FileExistsError):
        os.close(_create(path))


def make_file(path: Path, content: bytes) -> None:
    """Put `content` at `path` with mode 0600, durably and at once, unless something is there already."""
    draft = path.with_name(f".{path.name}.{uuid4().hex}")
    with translated(path):
        descriptor = _create(draft)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(descriptor)
            # A link, unlike a rename, never replaces what another process has put there meanwhile.
            with suppress(FileExistsError):
                os.link(draft, path)
        finally:
            draft.unlink()
        _sync_folder(path.parent)


def read_file(path: Path, limit_bytes: int) -> bytes | None:
    """Up to `limit_bytes` of `path`, None when it is not there; SecretUnreadable when others could have read it."""
    with translated(path):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise _not_a_file(path) from error
            raise
        try:
            _check_file(path, os.fstat(descriptor).st_mode)
            return os.read(descriptor, limit_bytes)
        finally:
            os.close(descriptor)


def check_folder(path: Path) -> None:
    """Refuse a folder in which others could exchange the files."""
    with translated(path):
        mode = path.stat().st_mode
    if mode & 0o022:
        raise SecretUnreadable(
            f"{path} has mode {stat.S_IMODE(mode):04o}: others than its owner can exchange the files in it.",
            hint=f"chmod 700 {path}",
        )


def _check_file(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise _not_a_file(path)
    if mode & 0o077:
        raise SecretUnreadable(
            f"{path} has mode {stat.S_IMODE(mode):04o}: others than its owner can use it.",
            hint=f"chmod 600 {path}",
        )


def _create(path: Path) -> int:
    descriptor = os.open(path, _NEW, 0o600)
    os.fchmod(descriptor, 0o600)  # a umask may have taken bits away
    return descriptor


def _not_a_file(path: Path) -> SecretUnreadable:
    return SecretUnreadable(
        f"{path} is not a plain file, and is not followed elsewhere.",
        hint=f"Put the file itself there, or remove {path}.",
    )


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
