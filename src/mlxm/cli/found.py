"""The models that a search has found so far, in a table whose gaps close while one looks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mlxm.catalog.hub import Dropped, Row, SearchEvent, Sort, sort_rows
from mlxm.catalog.memory import fits
from mlxm.cli.columns import columns_table, print_columns
from mlxm.cli.figures import UNKNOWN, count_of, show_bytes, show_count, show_tokens
from mlxm.cli.installed import TASKS, as_plain, show_quantisation
from mlxm.cli.machine import Machine
from mlxm.cli.output import print_note

HEADERS = ("MODEL", "TASK", "FAMILY", "QUANT", "SIZE", "CTX", "TOOLS", "FITS", "DOWNLOADS", "LIKES")
EXPENDABLE = ("LIKES", "FAMILY", "CTX", "TOOLS", "TASK", "DOWNLOADS")
_NOT_YET = "…"
_FRAMES_PER_S = 8


class Finds:
    """What stands after the events so far."""

    def __init__(self, sort: Sort, here: Machine) -> None:
        self.sort: Sort = sort
        self._here = here
        self._rows: dict[str, Row] = {}

    def take(self, event: SearchEvent) -> None:
        """Let an event change what stands."""
        if isinstance(event, Dropped):
            self._rows.pop(event.name, None)
        else:
            self._rows[event.row.name] = event.row

    def rows(self) -> list[Row]:
        """The models, as the search orders them."""
        return sort_rows(self._rows.values(), self.sort)

    def cells(self) -> list[tuple[str, ...]]:
        """The table below HEADERS."""
        return [self._cells(row) for row in self.rows()]

    def fits(self, row: Row) -> bool | None:
        """Whether the machine has the memory for a model; None when that cannot be said."""
        return None if row.memory_bytes is None else fits(row.memory_bytes, self._here.budget_bytes)

    def as_json(self, row: Row) -> dict[str, Any]:
        """A row with whether it fits."""
        return {**as_plain(row), "fits": self.fits(row)}

    @contextmanager
    def live(self, *, is_shown: bool) -> Iterator[Callable[[], None]]:
        """Show the table as it grows while the block runs, on a terminal; what is yielded draws it anew."""
        if not is_shown or not sys.stdout.isatty():
            yield lambda: None
            return
        from rich.live import Live

        with Live(transient=True, refresh_per_second=_FRAMES_PER_S) as live:
            yield lambda: live.update(columns_table(HEADERS, self.cells(), expendable=EXPENDABLE))

    def _cells(self, row: Row) -> tuple[str, ...]:
        known = row.characteristics
        gap = UNKNOWN if row.is_filled else _NOT_YET
        said = (
            None if known.kind == UNKNOWN else TASKS[known.kind],
            None if known.family == UNKNOWN else known.family,
            None
            if known.quantisation is None and known.dtype is None
            else show_quantisation(known.quantisation, known.dtype),
            None if row.size_bytes is None else show_bytes(row.size_bytes),
            None if known.context_length is None else show_tokens(known.context_length),
            None if known.tool_use.answer == UNKNOWN else known.tool_use.answer,
            {True: "yes", False: "no", None: None}[self.fits(row)],
        )
        return (
            row.name,
            *(gap if text is None else text for text in said),
            show_count(row.downloads),
            show_count(row.likes),
        )


def print_finds(finds: Finds) -> None:
    """The table as it stands at the end, and what is to be said about it."""
    rows = finds.rows()
    if not rows:
        print_note("Nothing was found. Try fewer words or filters.")
        return
    print_columns(HEADERS, finds.cells(), expendable=EXPENDABLE)
    undecided = [row for row in rows if row.undecided]
    if undecided:
        names = ", ".join(sorted({name for row in undecided for name in row.undecided}))
        print_note(f"Of {count_of(len(undecided), 'model')} the filters cannot tell: {names}.")
    for row in rows:
        if row.problem is not None:
            print_note(f"{row.name}: {row.problem}")
    print_note(f"{count_of(len(rows), 'model')}. Get one with: mlxm pull {rows[0].name}")
