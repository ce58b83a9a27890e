"""Reading the files of a model: whatever is wrong with one becomes ModelBroken that names it."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

from mlxm.errors import ModelBroken

FETCH_AGAIN: Final = "Fetch the model again."
_MIB: Final = 1024 * 1024
MAX_JSON_BYTES: Final = 128 * _MIB
# Without O_NONBLOCK a pipe that lies there would be waited at for ever.
_FLAGS: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_UNSEEN: Final = os.O_NOATIME if sys.platform == "linux" else 0


def read_object(path: Path, *, limit_bytes: int = MAX_JSON_BYTES) -> dict[str, Any] | None:
    """The JSON object in a file, None when there is no such file; raises ModelBroken."""
    content = read_bytes(path, limit_bytes=limit_bytes)
    return None if content is None else parse_object(content, path)


def read_text(path: Path, *, limit_bytes: int = MAX_JSON_BYTES) -> str | None:
    """The text of a UTF-8 file, None when there is no such file; raises ModelBroken."""
    content = read_bytes(path, limit_bytes=limit_bytes)
    return None if content is None else _decode(content, path)


def parse_object(content: bytes, path: Path) -> dict[str, Any]:
    """The JSON object in `content`, which was read from `path`; raises ModelBroken."""
    try:
        value = json.loads(_decode(content, path))
    except (ValueError, RecursionError) as error:
        raise ModelBroken(f"{printable(path)} is not valid JSON.", hint=FETCH_AGAIN) from error
    if not isinstance(value, dict):
        raise ModelBroken(f"{printable(path)} is not a JSON object.", hint=FETCH_AGAIN)
    return value


def read_bytes(path: Path, *, limit_bytes: int) -> bytes | None:
    """The content of a regular file, None when there is none; raises ModelBroken, also when it is too large."""
    try:
        with open_regular(path) as (file, size):
            if size > limit_bytes:
                raise ModelBroken(f"{printable(path)} is larger than {limit_bytes // _MIB} MiB.", hint=FETCH_AGAIN)
            return file.read(limit_bytes)
    except FileNotFoundError:
        return None


@contextmanager
def open_regular(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """A file and its size; FileNotFoundError when there is none, ModelBroken when it cannot be read or is no file."""
    try:
        with os.fdopen(_open(path), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ModelBroken(f"{printable(path)} is not a file.", hint=FETCH_AGAIN)
            yield file, status.st_size
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ModelBroken(f"{printable(path)} cannot be read: {error.strerror}.", hint=FETCH_AGAIN) from error


def _open(path: Path) -> int:
    """Open a file without that counting as use of it: people remove the models that were not read for long."""
    try:
        return os.open(path, _FLAGS | _UNSEEN)
    except PermissionError:
        return os.open(path, _FLAGS)  # only its owner may read a file unseen


def printable(path: Path) -> str:
    """A path as it can be shown: bytes that are no text are spelled out."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _decode(content: bytes, path: Path) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ModelBroken(f"{printable(path)} is not valid UTF-8.", hint=FETCH_AGAIN) from error
