"""How far a download is: one line that moves on a terminal, lines of JSON for programs, nothing for others."""

from __future__ import annotations

import sys
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from mlxm.cli.figures import count_of, show_bytes
from mlxm.cli.output import one_line, print_json_line

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from mlxm.downloads import Progress

_WIDE = 100
"""From this many columns on there is room for the name of the file."""


class ProgressLine:
    """Shows a download in a `with` block; `show` takes how it stands."""

    def __init__(self, *, as_lines: bool, is_quiet: bool) -> None:
        self.is_for_programs = as_lines
        self._bar = None if as_lines or is_quiet or not sys.stderr.isatty() else _make_bar()
        self._task = None if self._bar is None else self._bar.add_task("", total=None, **_NO_FIGURES)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, progress: Progress) -> None:
        """Show how it stands."""
        if self.is_for_programs:
            print_json_line(progress)
        elif self._bar is not None and self._task is not None:
            self._bar.update(self._task, **describe(progress))


_NO_FIGURES: dict[str, Any] = {"percent": "", "amount": "", "rate": "", "left": "", "file": ""}


def describe(progress: Progress) -> dict[str, Any]:
    """What the line says: the words before the bar, how full it is, and the figures behind it."""
    total = progress.total_bytes
    match progress.state:
        case "queued":
            words = "waiting" if progress.waits_for is None else f"waiting for {progress.waits_for}"
            return {**_NO_FIGURES, "description": words, "total": None}
        case "downloading" if total is not None and progress.num_files is not None:
            words = f"fetching {count_of(progress.num_files, 'file')}"
            return {"description": words, **_figures(progress.done_bytes, total), **_pace(progress)}
        case "verifying" if total is not None:
            return {"description": "verifying", **_NO_FIGURES, **_figures(progress.verified_bytes, total)}
        case state:
            return {**_NO_FIGURES, "description": "asking the Hub" if state == "checking" else state, "total": total}


def _figures(done: int, total: int) -> dict[str, Any]:
    share = 100 if total == 0 else 100 * done // total
    done_number, _, done_unit = show_bytes(done).partition(" ")
    number, _, unit = show_bytes(total).partition(" ")
    amount = f"{done_number}/{number} {unit}" if done_unit == unit else f"{show_bytes(done)}/{number} {unit}"
    return {"completed": done, "total": total, "percent": f"{share}%", "amount": amount}


def _pace(progress: Progress) -> dict[str, Any]:
    rate, left_s = progress.rate_bytes_per_s, progress.eta_s
    return {
        "rate": "" if rate is None else f"{show_bytes(int(rate))}/s",
        "left": "" if left_s is None else str(timedelta(seconds=round(left_s))),
        "file": one_line(progress.files[0]) if progress.files else "",
    }


def _make_bar() -> Bar:
    from rich.console import Console
    from rich.progress import BarColumn, ProgressColumn, TextColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    shown = ["percent", "amount", "rate", "left", *(["file"] if console.width >= _WIDE else [])]
    figures: list[ProgressColumn] = [TextColumn(f"{{task.fields[{name}]}}", markup=False) for name in shown]
    words = TextColumn("{task.description}", markup=False)
    return Bar(words, BarColumn(bar_width=None), *figures, console=console, transient=True, expand=True)
