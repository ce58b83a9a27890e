"""Finding the one sequence that made a step fail: those that were in it run again in halves, until one fails alone."""

from __future__ import annotations

from collections.abc import Mapping

from mlxm.engine.sequence import Sequence


class Suspects:
    """Groups of sequences, the next one to be tried last; who gets past the place of the failure is cleared."""

    def __init__(self) -> None:
        self._groups: list[dict[Sequence, int]] = []

    def split(self, goals: Mapping[Sequence, int]) -> None:
        """Suspect sequences that failed together, each on its way to a position."""
        for group in self._groups:
            for sequence in goals:
                group.pop(sequence, None)
        items = list(goals.items())
        half = len(items) // 2
        self._groups += [dict(items[half:]), dict(items[:half])]

    def next_group(self) -> list[Sequence] | None:
        """Those that have to run alone now; None when nobody is suspected any more."""
        while self._groups:
            group = self._groups[-1]
            suspected = [
                sequence
                for sequence, goal in group.items()
                if sequence.state == "running" and sequence.num_computed < goal
            ]
            if suspected:
                return sorted(suspected, key=lambda sequence: sequence.rank)
            self._groups.pop()
        return None
