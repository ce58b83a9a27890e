"""A real worker whose device fails on certain tokens: when a step is launched or collected, and by its numbers."""

import sys
from collections import deque
from typing import Any

import msgspec

from mlxm.device.blas import open_blas

open_blas()

from mlxm.device import choice  # noqa: E402  (after the BLAS)
from mlxm.engine.plan import Outcome, Plan, Runner  # noqa: E402  (as above)
from mlxm.worker.__main__ import main  # noqa: E402  (as above)

LAUNCH, COLLECT, NUMBERS = 1001, 1002, 1003
open_real = choice.open_runner


class BreakingRunner:
    """The real runner, with faults."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.facts = runner.facts
        self._plans: deque[Plan] = deque()

    def launch(self, plan: Plan) -> None:
        """Start a step, unless its tokens forbid it."""
        self._runner.launch(plan)
        if holds(plan, LAUNCH):
            self._runner.collect()
            raise RuntimeError("broken at launch")
        self._plans.append(plan)

    def collect(self) -> Outcome:
        """Its numbers, or a fault."""
        plan = self._plans.popleft()
        outcome = self._runner.collect()
        if holds(plan, COLLECT):
            raise RuntimeError("broken at the end")
        failed = tuple(place for place, row in enumerate(plan.rows) if row.token == NUMBERS)
        return msgspec.structs.replace(outcome, failed_rows=(*outcome.failed_rows, *failed))

    def forget(self, sequence: int) -> None:
        """Nothing fails here."""
        self._runner.forget(sequence)


def holds(plan: Plan, token: int) -> bool:
    """Whether a token is computed in a step."""
    return any(row.token == token for row in plan.rows) or any(token in chunk.tokens for chunk in plan.chunks)


def open_breaking(*arguments: Any) -> BreakingRunner:
    """What the worker is given for its runner."""
    return BreakingRunner(open_real(*arguments))


choice.open_runner = open_breaking  # type: ignore[assignment]
sys.exit(main())
