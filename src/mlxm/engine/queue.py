"""The sequences that wait for room: by priority, aged by waiting, first come first served among equals.

All that wait age equally fast, so their order never changes while they wait: a heap with a fixed key will do, and no
clock is looked at.
"""

from __future__ import annotations

import heapq
from itertools import count

from mlxm.engine.sequence import Sequence

AGEING_S = 10.0
"""Waiting that long is worth one level of priority: low becomes normal after 10 s and high after 20 s."""

_Entry = tuple[float, int, int, Sequence]


class WaitingQueue:
    """A heap in which removed entries lie until they come up, or until they are the larger part."""

    def __init__(self) -> None:
        self._heap: list[_Entry] = []
        self._entries: dict[int, _Entry] = {}
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._entries)

    def push(self, sequence: Sequence) -> None:
        """Let a sequence wait; its place comes from its arrival, also when it has run before."""
        key = sequence.priority + sequence.arrival_s / AGEING_S
        entry = (key, sequence.id, next(self._numbers), sequence)
        self._entries[sequence.id] = entry
        heapq.heappush(self._heap, entry)

    def first(self) -> Sequence:
        """The sequence whose turn it is; the queue must not be empty."""
        while not self._is_waiting(self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0][-1]

    def pop(self) -> Sequence:
        """Take out the sequence whose turn it is; the queue must not be empty."""
        sequence = self.first()
        heapq.heappop(self._heap)
        del self._entries[sequence.id]
        return sequence

    def remove(self, sequence: Sequence) -> None:
        """Take out a sequence that waits."""
        del self._entries[sequence.id]
        if len(self._heap) > 2 * len(self._entries):
            self._heap = list(self._entries.values())
            heapq.heapify(self._heap)

    def _is_waiting(self, entry: _Entry) -> bool:
        return self._entries.get(entry[1]) is entry
