"""`python -m mlxm.downloads.fetch --fd N` fetches one model for the process at the other end, and ends with it.

Hello comes before anything heavy is imported, so that the parent knows at once that somebody is there.
"""

from __future__ import annotations

import argparse
import os
import socket
import threading

import msgspec

from mlxm import __version__
from mlxm.downloads.frames import Fetch, ToFetch
from mlxm.frames import PROTOCOL, Decoder, Hello, encode

PARENT_GONE = 1
"""The exit status of a child whose parent has left."""


class Line:
    """The parent: what it says next, and what it is told by any thread."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._decoder = Decoder(ToFetch)
        self._lock = threading.Lock()
        self._is_over = False

    def say(self, frame: msgspec.Struct) -> None:
        """Send a frame; without a parent there is nothing to fetch for."""
        try:
            with self._lock:
                self._sock.sendall(encode(frame))
        except OSError:
            os._exit(PARENT_GONE)

    def say_last(self, frame: msgspec.Struct) -> None:
        """Send the frame after which the parent has nothing to say that matters."""
        self._is_over = True
        self.say(frame)

    def hear(self) -> ToFetch | None:
        """Wait for the next frame, None at the end."""
        frame: ToFetch | None = self._decoder.read_blocking(self._sock)
        return frame

    def leave_with_parent(self) -> None:
        """End this process at once, whatever it does, when the parent says so or is gone."""

        def listen() -> None:
            self.hear()
            if not self._is_over:
                os._exit(PARENT_GONE)

        threading.Thread(target=listen, daemon=True).start()


def main() -> int:
    """Take the order and carry it out; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m mlxm.downloads.fetch", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="the socket inherited from the parent")
    line = Line(socket.socket(fileno=parser.parse_args().fd))
    line.say(Hello(protocol=PROTOCOL, version=__version__, pid=os.getpid()))
    order = line.hear()
    if isinstance(order, Fetch):
        line.leave_with_parent()
        from mlxm.downloads.work import carry_out  # noqa: PLC0415  (hello first)

        line.say_last(carry_out(order, line.say))
    return 0


if __name__ == "__main__":
    os._exit(main())  # threads that still fetch for a download that failed are not waited for
