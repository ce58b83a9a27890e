"""How the server is told to stop: the first signal asks, the second one insists."""

from __future__ import annotations

import asyncio
import signal


class Stop:
    """What the signals said so far."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.insisted = asyncio.Event()

    def listen(self) -> None:
        """Handle SIGTERM and SIGINT from now on, in the running loop."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self.signal)

    def signal(self) -> None:
        """Take one more signal."""
        (self.insisted if self.asked.is_set() else self.asked).set()
