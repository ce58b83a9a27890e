"""The worker's main loop: what has arrived goes to the engine, the engine makes a step, the step's events go out.

With nothing to compute it sleeps until a frame wakes it; with something to compute it looks at the link between steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from mlxm.engine.engine import Engine, Event
from mlxm.engine.request import Order
from mlxm.errors import MlxmError, ProtocolMismatch
from mlxm.frames import Cancel, Fault, Generate, PrefillTurn, RequestEnded, Shrink, Shutdown, Stats, Step, ToWorker
from mlxm.types import Usage
from mlxm.worker.link import Link
from mlxm.worker.turn import Turn

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
        shrink: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._link = link
        self._engine = engine
        self._make_order = make_order
        self._measure = measure
        self._shrink = shrink
        self._clock = clock
        self._told_s = clock()
        self._is_at_rest = False
        self._is_leaving = False
        self._turn = Turn(link, engine)

    def run(self) -> None:
        """Serve until Shutdown."""
        self._send(())
        while not self._is_leaving:
            if not self._engine.has_work:
                self._handle(self._link.receive())
            while (frame := self._link.poll()) is not None:
                self._handle(frame)
            if self._engine.has_work and not self._is_leaving:
                self._turn.before_step()
                self._send(self._engine.step())
            self._turn.after_step()
        self._send(self._engine.cancel_all(_LEAVING))

    def _handle(self, frame: ToWorker) -> None:
        match frame:
            case Generate():
                self._send(self._add(frame))
            case Cancel():
                self._send(self._engine.cancel(frame.request_id, frame.reason))
            case PrefillTurn(has_it=has_it):
                self._turn.passes(has_it=has_it)
            case Shrink():
                self._shrink()
                self._tell_stats()
            case Shutdown():
                self._is_leaving = True
            case _:
                raise ProtocolMismatch(f"A worker that has its model does not take {type(frame).__name__}.")

    def _add(self, request: Generate) -> tuple[Event, ...]:
        try:
            return self._engine.add(self._make_order(request))
        except MlxmError as error:
            return (RequestEnded(request_id=request.request_id, usage=Usage(), fault=Fault.of(error)),)

    def _send(self, events: tuple[Event, ...]) -> None:
        """Tell what happened; who learns that all requests have ended knows already that the engine is at rest."""
        was_at_rest, self._is_at_rest = self._is_at_rest, not self._engine.has_work
        is_due = self._clock() - self._told_s >= STATS_PERIOD_S
        if not was_at_rest and (self._is_at_rest or is_due):
            self._tell_stats()
        if events:
            self._link.send(Step(events))

    def _tell_stats(self) -> None:
        self._told_s = self._clock()
        self._link.send(self._measure(self._engine.stats))
