"""Which store was found right and fastest for a model on this machine, kept in a file so that nobody asks again.

Trying a store may end the process. So before each trial its name is written down; if the name is still there at the
next start, that store is out.
"""

from __future__ import annotations

import hashlib
import os
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx
import msgspec

from mlxm import __version__

_PACKAGES = ("mlx", "mlx-lm")


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What was found; `kind` None when no store over blocks is right for the model."""

    kind: str | None
    why: str
    runs_ahead: bool = False


class Verdicts:
    """The verdict on one model, on disk."""

    def __init__(self, folder: Path, model: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        key = _key(model)
        self._file = folder / f"{key}.json"
        self._trial = folder / f"{key}.trying"
        self._fatal = folder / f"{key}.fatal"

    def read(self) -> Verdict | None:
        """The verdict, if there is one that can be read."""
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=Verdict)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def write(self, verdict: Verdict) -> None:
        """Keep a verdict."""
        _replace(self._file, msgspec.json.encode(verdict))

    def fatal_kinds(self) -> frozenset[str]:
        """The stores whose trial ended a process."""
        if self._trial.exists():
            _replace(self._fatal, self._lines(self._fatal) + self._trial.read_bytes() + b"\n")
            self._trial.unlink()
        return frozenset(self._lines(self._fatal).decode().split("\n")) - {""}

    def begin_trial(self, kind: str) -> None:
        """Write down what is tried, so that it is there should the process end."""
        _replace(self._trial, kind.encode())

    def end_trial(self) -> None:
        """The process lives."""
        self._trial.unlink()

    @staticmethod
    def _lines(path: Path) -> bytes:
        return path.read_bytes() if path.exists() else b""


def _key(model: Path) -> str:
    """A digest of all that a verdict depends on."""
    digest = hashlib.sha256((model / "config.json").read_bytes())
    versions = [f"{name} {version(name)}" for name in _PACKAGES]
    device = mx.device_info()
    facts = [__version__, *versions, str(mx.default_device()), str(device.get("device_name")), str(os.cpu_count())]
    digest.update("\n".join(facts).encode())
    return digest.hexdigest()[:24]


def _replace(path: Path, content: bytes) -> None:
    """Write a file whole and lasting, or leave the one that is there."""
    scratch = path.with_suffix(f"{path.suffix}.{os.getpid()}")
    with scratch.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)
