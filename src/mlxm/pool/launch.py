"""Starts workers, and keeps a spare one that has imported all it needs: a load then begins with the weights.

All of them share one device, so it is also here that they take turns with long prompts.
"""

from __future__ import annotations

import asyncio

from mlxm.errors import MlxmError
from mlxm.pool.turns import Turns
from mlxm.pool.worker import OnDeath, OnWords, Worker, WorkerOptions, ignore

_NOBODY = "a spare worker"


class Workers:
    """Launches this machine's workers; `on_death` and `on_words` are told of each of them."""

    def __init__(self, options: WorkerOptions, on_death: OnDeath = ignore, on_words: OnWords = ignore) -> None:
        self.options = options
        self._on_death = on_death
        self._on_words = on_words
        self._turns: Turns[Worker] = Turns(lambda worker, has_it: worker.give_turn(has_it=has_it))
        self._spare: asyncio.Task[Worker] | None = None
        self._endings: set[asyncio.Task[None]] = set()

    async def take(self, name: str) -> Worker:
        """The spare worker if it is there and alive, else a new one; raises WorkerDied or ProtocolMismatch."""
        spare, self._spare = self._spare, None
        if spare is None:
            return await self._start(name)
        try:
            await asyncio.wait([spare])
        except BaseException:
            self._let_go(spare)
            raise
        worker = _alive(spare)
        if worker is None:
            return await self._start(name)
        worker.rename(name)
        return worker

    def refill(self, *, has_spare: bool) -> None:
        """See to it that there is a spare worker, or none."""
        spare = self._spare
        if spare is not None and (not has_spare or (spare.done() and _alive(spare) is None)):
            self._spare = None
            self._let_go(spare)
        if has_spare and self._spare is None:
            self._spare = asyncio.create_task(self._start(_NOBODY), name=_NOBODY)

    async def close(self) -> None:
        """End the spare worker."""
        self.refill(has_spare=False)
        if self._endings:
            await asyncio.wait(self._endings)

    async def _start(self, name: str) -> Worker:
        return await Worker.start(name, self.options, self._on_death, self._on_words, self._take_turns)

    def _take_turns(self, worker: Worker, asks: bool) -> None:  # noqa: FBT001  # as OnTurn says
        if asks:
            self._turns.ask(worker)
        else:
            self._turns.give_back(worker)

    def _let_go(self, spare: asyncio.Task[Worker]) -> None:
        ending = asyncio.create_task(_end(spare), name=f"end {_NOBODY}")
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)


def _alive(spare: asyncio.Task[Worker]) -> Worker | None:
    """The worker that was started; None when it could not be, or has died since. Why that is was told already."""
    if spare.cancelled() or isinstance(spare.exception(), MlxmError):
        return None
    worker = spare.result()
    return worker if worker.is_alive else None


async def _end(spare: asyncio.Task[Worker]) -> None:
    await asyncio.wait([spare])
    worker = _alive(spare)
    if worker is not None:
        await worker.stop()
