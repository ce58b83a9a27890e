"""Whose turn it is to compute a long prompt: one worker at a time, first come, first served.

Who has the turn keeps it until somebody else asks; so one model alone never waits and never asks twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

WorkerT = TypeVar("WorkerT")


class Turns(Generic[WorkerT]):
    """Passes the turn on; `tell` says to a worker that it has the turn, True, or is to give it back, False."""

    def __init__(self, tell: Callable[[WorkerT, bool], None]) -> None:
        self._tell = tell
        self._waiting: deque[WorkerT] = deque()
        self.holder: WorkerT | None = None
        self._is_wanted_back = False

    def ask(self, worker: WorkerT) -> None:
        """A worker has a long prompt."""
        if worker is self.holder or worker in self._waiting:
            return
        self._waiting.append(worker)
        self._pass_on()

    def give_back(self, worker: WorkerT) -> None:
        """A worker has no turn any more, or wants none: it gave it back, or is gone."""
        if worker in self._waiting:
            self._waiting.remove(worker)
        if worker is self.holder:
            self.holder = None
            self._is_wanted_back = False
            self._pass_on()

    def _pass_on(self) -> None:
        if not self._waiting:
            return
        if self.holder is None:
            self.holder = self._waiting.popleft()
            self._tell(self.holder, True)  # noqa: FBT003  # as its docstring says
        if self._waiting and not self._is_wanted_back:
            self._is_wanted_back = True
            self._tell(self.holder, False)  # noqa: FBT003  # as above
