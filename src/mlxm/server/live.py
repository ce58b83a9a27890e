"""What runs at this moment, and whether more is let in: the server's own part of shutting down politely."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mlxm.errors import Draining, MlxmError, Overloaded

RETRY_ELSEWHERE_S = 5.0
NUM_REMEMBERED = 64
MAX_RETRY_S = 60.0

Fail = Callable[[MlxmError], None]


def draining() -> Draining:
    """What a request hears while the server shuts down."""
    return Draining("The server is shutting down.", hint="Try again in a moment.", retry_after_s=RETRY_ELSEWHERE_S)


class Live:
    """Knows the requests under way, and can end those that have an answer.

    While `is_draining`, new requests are refused; `idle` is set while none is under way. Requests for text are admitted
    one by one, because each of them costs much.
    """

    def __init__(self) -> None:
        self.is_draining = False
        self._admitted: set[str] = set()
        self._ends_s: deque[float] = deque(maxlen=NUM_REMEMBERED)
        self.request_ids: set[str] = set()
        self.idle = asyncio.Event()
        self.idle.set()
        self._fails: set[Fail] = set()

    @property
    def num_answers(self) -> int:
        """Answers under way."""
        return len(self._fails)

    @contextmanager
    def request(self, request_id: str) -> Iterator[None]:
        """Know a request while it is under way; probes are not counted."""
        self.request_ids.add(request_id)
        self.idle.clear()
        try:
            yield
        finally:
            self.request_ids.discard(request_id)
            self._release(request_id)
            if not self.request_ids:
                self.idle.set()

    def admit(self, request_id: str, max_requests: int) -> None:
        """Count a request under way among those for text until it ends; Overloaded when there are too many."""
        if len(self._admitted) >= max_requests:
            raise Overloaded(
                f"{max_requests} requests are under way, and no more are taken on.",
                hint="Try again a little later.",
                retry_after_s=self._until_next_end_s(),
            )
        self._admitted.add(request_id)

    def _release(self, request_id: str) -> None:
        if request_id in self._admitted:
            self._admitted.discard(request_id)
            self._ends_s.append(time.monotonic())

    def _until_next_end_s(self) -> float:
        """How long it takes until a request ends, as they have ended of late; a second while that is not known."""
        if len(self._ends_s) < 2:  # noqa: PLR2004  # there is no time between fewer
            return 1.0
        return min((time.monotonic() - self._ends_s[0]) / len(self._ends_s), MAX_RETRY_S)

    def add(self, fail: Fail) -> None:
        """Take on an answer; `fail` ends it when the server cannot wait any longer."""
        self._fails.add(fail)

    def discard(self, fail: Fail) -> None:
        """Let go of an answer; harmless when that was done before."""
        self._fails.discard(fail)

    def end_all(self) -> None:
        """Have every answer under way end with an error."""
        for fail in tuple(self._fails):
            fail(draining())
