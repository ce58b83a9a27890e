"""`mlxm serve --detach`: the same server in the background, left alone once it says that it is ready."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final

import msgspec

from mlxm.errors import BY_CODE, InternalError, MlxmError
from mlxm.store.private import make_empty, make_folder

LOG_NAME: Final = "serve.log"


class Background(msgspec.Struct, frozen=True, kw_only=True):
    """A server that runs in the background."""

    url: str
    pid: int
    log: str


class _Said(msgspec.Struct, frozen=True):
    url: str


class _Problem(msgspec.Struct, frozen=True):
    code: str
    message: str
    hint: str | None = None


class _Failed(msgspec.Struct, frozen=True):
    error: _Problem


def serve_in_background(home: Path, arguments: Sequence[str]) -> Background:
    """Start `mlxm serve` with `arguments` and wait until it is ready; raises what it could not start for."""
    log = home / "logs" / LOG_NAME
    make_folder(home)
    make_folder(log.parent)
    make_empty(log)
    with log.open("ab") as lines:
        begin = lines.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", "mlxm", "serve", "--json", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=lines,
            start_new_session=True,
        )
    try:
        said = b"" if process.stdout is None else _read_document(process.stdout)
    except KeyboardInterrupt:
        process.terminate()
        raise
    if not said:
        process.wait()
        raise failure_of(log, begin)
    url = msgspec.json.decode(said, type=_Said).url
    return Background(url=url, pid=process.pid, log=str(log))


def _read_document(stream: IO[bytes]) -> bytes:
    """The first JSON object that a server prints; nothing when it ends before."""
    lines = []
    for line in stream:
        lines.append(line)
        if line == b"}\n":
            return b"".join(lines)
    return b""


def failure_of(log: Path, begin: int) -> MlxmError:
    """Why a server did not start, by its last words."""
    with log.open("rb") as lines:
        lines.seek(begin)
        said = lines.read()
    for line in reversed(said.splitlines()):
        try:
            problem = msgspec.json.decode(line, type=_Failed).error
        except msgspec.DecodeError:
            continue
        return BY_CODE.get(problem.code, InternalError)(problem.message, hint=problem.hint)
    return InternalError("The server ended before it was ready.", hint=f"Its last words are in {log}.")
