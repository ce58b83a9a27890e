"""The worker's main loop: what has arrived goes to the engine, the engine makes a step, the step's events go out.

With nothing to compute it sleeps until a frame wakes it; with something to compute it looks at the link between steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from mlxm.engine.engine import Engine, Event
from mlxm.engine.request import Order
from mlxm.errors import MlxmError, ProtocolMismatch
from mlxm.frames import Cancel, Fault, Generate, RequestEnded, Shutdown, Stats, Step, ToWorker
from mlxm.types import Usage
from mlxm.worker.link import Link

STATS_PERIOD_S = 0.5
"""While it works, it says how it is doing no more often than this."""
_LEAVING = "the worker was told to leave"

MakeOrder = Callable[[Generate], Order]
"""The engine's order for a request: with it goes what only the loaded model knows."""
Measure = Callable[[Stats], Stats]
"""Adds what the device knows."""


class Service:
    """Runs requests on one engine until it is told to leave."""

    def __init__(
        self,
        link: Link,
        engine: Engine,
        make_order: MakeOrder,
        measure: Measure,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._link = link
        self._engine = engine
        self._make_order = make_order
        self._measure = measure
        self._clock = clock
        self._told_s = float("-inf")
        self._is_leaving = False

    def run(self) -> None:
        """Serve until Shutdown."""
        while not self._is_leaving:
            if not self._engine.has_work:
                self._tell_stats()
                self._handle(self._link.receive())
            while (frame := self._link.poll()) is not None:
                self._handle(frame)
            if self._engine.has_work and not self._is_leaving:
                self._step()
        self._send(self._engine.cancel_all(_LEAVING))

    def _handle(self, frame: ToWorker) -> None:
        match frame:
            case Generate():
                self._send(self._add(frame))
            case Cancel():
                self._send(self._engine.cancel(frame.request_id, frame.reason))
            case Shutdown():
                self._is_leaving = True
            case _:
                raise ProtocolMismatch(f"A worker that has its model does not take {type(frame).__name__}.")

    def _add(self, request: Generate) -> tuple[Event, ...]:
        try:
            return self._engine.add(self._make_order(request))
        except MlxmError as error:
            return (RequestEnded(request_id=request.request_id, usage=Usage(), fault=Fault.of(error)),)

    def _step(self) -> None:
        self._send(self._engine.step())
        if self._engine.has_work and self._clock() - self._told_s >= STATS_PERIOD_S:
            self._tell_stats()

    def _send(self, events: tuple[Event, ...]) -> None:
        if events:
            self._link.send(Step(events))

    def _tell_stats(self) -> None:
        self._told_s = self._clock()
        self._link.send(self._measure(self._engine.stats))
