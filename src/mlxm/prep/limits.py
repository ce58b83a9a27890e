"""What one job may use: the kernel refuses memory beyond it, and a watch ends the process where the kernel cannot.

Only memory gained since the job began counts, so that large tokenizers kept in memory take nothing from it.
"""

from __future__ import annotations

import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

from mlxm.errors import InvalidRequest, ModelBroken

EXIT_OVER_MEMORY: Final = 86
"""The exit code of a process whose job grew past its limit."""

_MIB: Final = 1024 * 1024
_STATM: Final = Path("/proc/self/statm")
_WATCH_S: Final = 0.02
_CPU_S: Final = 120


def job_over_memory(limit_bytes: int) -> InvalidRequest:
    """What a job that grew past its limit is answered with, by the process or by the parent that found it ended."""
    return InvalidRequest(
        f"The model's chat template uses too much memory: more than {limit_bytes // _MIB} MiB for this conversation.",
        hint="Shorten the conversation, or use another model.",
        param="messages",
    )


def load_over_memory() -> ModelBroken:
    """The same for a tokenizer that is too large to be read."""
    return ModelBroken("The model's tokenizer does not fit into memory.", hint="Choose another model.")


class Footprint(NamedTuple):
    """What the process occupies now; `data_bytes` is None where the kernel does not count it."""

    resident_bytes: int
    data_bytes: int | None


def footprint(statm: Path = _STATM) -> Footprint:
    """The process's size; without /proc its peak so far stands for the resident size, which errs on the mild side."""
    try:
        fields = statm.read_text().split()
    except FileNotFoundError:
        unit = 1 if sys.platform == "darwin" else 1024
        return Footprint(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, None)
    page = resource.getpagesize()
    return Footprint(int(fields[1]) * page, int(fields[5]) * page)


def limit_cpu() -> None:
    """Let the kernel end the process after two more minutes of computing.

    The parent is far quicker; this is for an orphan caught inside one endless call that no thread can interrupt.
    """
    usage = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(usage.ru_utime + usage.ru_stime) + _CPU_S, hard))


class MemoryGuard:
    """Bounds how far the process may grow while it does something."""

    def __init__(
        self,
        *,
        measure: Callable[[], Footprint] = footprint,
        leave: Callable[[int], NoReturn] = os._exit,
    ) -> None:
        self._measure = measure
        self._leave = leave
        self._ceiling_bytes = 0
        self._busy = threading.Event()
        threading.Thread(target=self._watch, name="memory", daemon=True).start()

    @contextmanager
    def watched(self, growth_bytes: int) -> Iterator[None]:
        """End the process when it grows by more than `growth_bytes` inside."""
        self._ceiling_bytes = self._measure().resident_bytes + growth_bytes
        self._busy.set()
        try:
            yield
        finally:
            self._busy.clear()

    @contextmanager
    def refused(self, growth_bytes: int) -> Iterator[None]:
        """Raise MemoryError for what goes beyond `growth_bytes`; for Python alone, other code dies of a refusal."""
        data_bytes = self._measure().data_bytes
        if data_bytes is None:
            yield
            return
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (_lowest(data_bytes + growth_bytes, soft, hard), hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))

    def _watch(self) -> None:
        while self._busy.wait():
            if self._measure().resident_bytes > self._ceiling_bytes:
                sys.stderr.write("The job used more memory than it may.\n")
                sys.stderr.flush()
                self._leave(EXIT_OVER_MEMORY)
            time.sleep(_WATCH_S)


def _lowest(*limits: int) -> int:
    return min(limit for limit in limits if limit != resource.RLIM_INFINITY)
