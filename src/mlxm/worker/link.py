"""The worker's end of the socket: a thread that reads and a thread that writes, so that the MLX thread does neither.

End-of-file means that the parent is gone. Then nobody is left to compute for, and the process ends on the spot.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

import msgspec

from mlxm.errors import ProtocolMismatch
from mlxm.frames import Decoder, ToWorker, encode

PARENT_GONE = 1
"""The exit status of a worker whose parent has left."""


class Link:
    """Frames in, frames out."""

    def __init__(self, sock: socket.socket, *, leave: Callable[[int], object] = os._exit) -> None:
        self._sock = sock
        self._leave = leave
        self._inbox: SimpleQueue[ToWorker] = SimpleQueue()
        self._outbox: SimpleQueue[bytes | None] = SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="link-writer", daemon=True)
        self._writer.start()
        threading.Thread(target=self._read, name="link-reader", daemon=True).start()

    def send(self, frame: msgspec.Struct) -> None:
        """Queue a frame."""
        self._outbox.put(encode(frame))

    def receive(self) -> ToWorker:
        """Wait for the next frame."""
        return self._inbox.get()

    def poll(self) -> ToWorker | None:
        """The next frame if there is one now."""
        try:
            return self._inbox.get_nowait()
        except Empty:
            return None

    def flush(self) -> None:
        """Wait until all is sent; nothing can be sent afterwards."""
        self._outbox.put(None)
        self._writer.join()

    def _read(self) -> None:
        decoder = Decoder(ToWorker)
        try:
            while (frame := decoder.read_blocking(self._sock)) is not None:
                self._inbox.put(frame)
        except ProtocolMismatch as error:
            print(error.message, file=sys.stderr, flush=True)  # noqa: T201  (the parent keeps these words)
        finally:
            self._leave(PARENT_GONE)

    def _write(self) -> None:
        try:
            while (data := self._outbox.get()) is not None:
                self._sock.sendall(data)
        except OSError:
            self._leave(PARENT_GONE)
