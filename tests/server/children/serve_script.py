"""Run the server over a scripted backend, and tell on stdout how its life goes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mlxm.errors import MlxmError, Unavailable, WorkerDied
from mlxm.server.run import run_server
from mlxm.settings import load_settings
from mlxm.testing.backends import EchoBackend, ScriptedBackend, Step
from mlxm.types import ChatRequest, Started, TextDelta

if TYPE_CHECKING:
    from mlxm.downloads import Downloads


def say(line: str) -> None:
    """Tell whoever started this."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def endless(_request: ChatRequest) -> Iterator[Step]:
    """An answer that never ends by itself."""
    yield Started(1)
    while True:
        yield TextDelta(choice=0, text="token")
        yield partial(asyncio.sleep, 0.01)


class Telling(ScriptedBackend):
    """Says when it is started and closed, as the command line asks for."""

    orders = None

    def __init__(self, manner: str, start_when: Path) -> None:
        pace = partial(asyncio.sleep, 0.05)
        super().__init__(endless if manner == "endless" else EchoBackend(pace=pace)._script)
        self._manner = manner
        self._start_when = start_when

    async def start(self) -> None:
        """Start in the asked manner."""
        if self._manner == "broken":
            raise WorkerDied("It cannot start.")
        while self._manner == "late" and not self._start_when.exists():  # noqa: ASYNC110  # another process tells
            await asyncio.sleep(0.01)

    async def downloads(self) -> Downloads:
        """There are none here."""
        raise Unavailable("This backend fetches no models.")

    async def close(self) -> None:
        """Close in the asked manner."""
        if self._manner == "clinging":
            await asyncio.sleep(3600)
        say(f"closed with {self.counts.active} active")


def main() -> int:
    """Serve; the exit code."""
    manner, start_when = sys.argv[1], Path(sys.argv[2])
    try:
        is_finished = run_server(
            lambda *_: Telling(manner, start_when), load_settings(), lambda url: say(f"ready {url}")
        )
    except MlxmError as error:
        say(f"{error.code}: {error.message}")
        return 1
    return 0 if is_finished else 130


if __name__ == "__main__":
    sys.exit(main())
