"""What runs at this moment, and whether more is let in: the server's own part of shutting down politely."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mlxm.errors import Draining

RETRY_ELSEWHERE_S = 5.0

Fail = Callable[[Draining], None]


def draining() -> Draining:
    """What a request hears while the server shuts down."""
    return Draining("The server is shutting down.", hint="Try again in a moment.", retry_after_s=RETRY_ELSEWHERE_S)


class Live:
    """Knows the requests under way, and can end those that have an answer.

    While `is_draining`, new requests are refused; `idle` is set while none is under way.
    """

    def __init__(self) -> None:
        self.is_draining = False
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
            if not self.request_ids:
                self.idle.set()

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
