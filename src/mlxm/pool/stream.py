"""The events of one request between the worker that makes them and the reader that takes them.

It holds at most one delta for each choice, and one more for the prompt: what a slow reader has not taken yet becomes
one longer delta, and the worker never waits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from itertools import accumulate
from typing import Final, Self

from mlxm.errors import InternalError, MlxmError
from mlxm.frames import Delta, RequestEnded, RequestStarted

FINISHED: Final = "enough has been said"
"""Why a request is cancelled whose answer so far is all that is wanted."""

RequestEvent = RequestStarted | Delta | RequestEnded


class _Pile:
    """Deltas of one choice that nobody has taken yet."""

    def __init__(self, delta: Delta) -> None:
        self.deltas = [delta]

    def takes(self, delta: Delta) -> bool:
        """Whether it is more of the same: deltas without tokens of the answer are about the prompt."""
        return bool(delta.token_ids) == bool(self.deltas[-1].token_ids)

    def merged(self) -> Delta:
        last = self.deltas[-1]
        if len(self.deltas) == 1:
            return last
        return Delta(
            request_id=last.request_id,
            choice=last.choice,
            seq=self.deltas[0].seq,
            text="".join(delta.text for delta in self.deltas),
            token_ids=tuple(token_id for delta in self.deltas for token_id in delta.token_ids),
            finish_reason=last.finish_reason,
            stop=last.stop,
            logprobs=tuple(logprobs for delta in self.deltas for logprobs in delta.logprobs),
            ends=tuple(accumulate(len(delta.text) for delta in self.deltas)) if last.token_ids else (),
        )


class RequestStream:
    """An iterator over one request's events, the last of which is RequestEnded; raises what ended it otherwise.

    Closing it early cancels the request. `on_end` is called once, when the worker is done with the request, and so
    perhaps after the reader has left.
    """

    def __init__(self, *, cancel: Callable[[str], None], on_end: Callable[[], None]) -> None:
        self._cancel = cancel
        self._on_end = on_end
        self._queue: deque[RequestStarted | _Pile | RequestEnded] = deque()
        self._piles: dict[int, _Pile] = {}
        self._next_seq = 0
        self._error: MlxmError | None = None
        self._is_ended = False
        self._is_closed = False
        self._arrived = asyncio.Event()

    @property
    def is_closed(self) -> bool:
        """Whether its reader has left, or will hear of nothing but a failure."""
        return self._is_closed

    def put(self, event: RequestEvent) -> None:
        """Add what the worker said."""
        if self._is_ended:
            return
        if isinstance(event, Delta) and not self._is_closed:
            self._check_order(event)
        if not self._is_closed:
            self._add(event)
        if isinstance(event, RequestEnded):
            self._end()
        self._arrived.set()

    def fail(self, error: MlxmError) -> None:
        """End the request because its worker cannot go on."""
        if not self._is_ended:
            self._error = error
            self._end()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> RequestEvent:
        while not self._queue:
            if self._error is not None:
                raise self._error
            if self._is_ended or self._is_closed:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        event = self._queue.popleft()
        if isinstance(event, _Pile):
            merged = event.merged()
            if self._piles.get(merged.choice) is event:
                del self._piles[merged.choice]
            return merged
        return event

    def finish(self) -> None:
        """Have the request end as it is; its last event tells what was computed."""
        if not self._is_ended and not self._is_closed:
            self._cancel(FINISHED)

    async def aclose(self) -> None:
        """Cancel the request unless it has ended; what the worker still says about it is dropped."""
        self._close("its reader has left")
        self._queue.clear()
        self._piles.clear()

    def _close(self, reason: str) -> None:
        if not self._is_ended and not self._is_closed:
            self._cancel(reason)
        self._is_closed = True
        self._arrived.set()

    def _check_order(self, delta: Delta) -> None:
        if delta.seq == self._next_seq:
            self._next_seq += 1
            return
        self._error = InternalError(f"The worker's delta {self._next_seq} is missing.", hint="Send the request again.")
        self._close("a delta is missing")

    def _add(self, event: RequestEvent) -> None:
        if not isinstance(event, Delta):
            self._queue.append(event)
        elif (pile := self._piles.get(event.choice)) is not None and pile.takes(event):
            pile.deltas.append(event)
        else:
            self._piles[event.choice] = pile = _Pile(event)
            self._queue.append(pile)

    def _end(self) -> None:
        self._is_ended = True
        self._arrived.set()
        self._on_end()


def leave_alone(_: RequestStream) -> None:
    """Let a request go its way."""
