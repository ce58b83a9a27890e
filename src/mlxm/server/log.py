"""The server's log: JSON lines for programs, plain ones for people; on stderr, with no control character let through.

structlog takes a good part of the server's start to import. That happens in a thread once requests are served; lines
from before wait until then.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import sys
from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, TextIO

if TYPE_CHECKING:
    from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

Level = Literal["debug", "info", "warning", "error"]
Style = Literal["auto", "console", "json"]

MAX_HELD = 1000
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class Log:
    """Where the server says what happens; every line about a request carries its id."""

    def __init__(self, level: Level = "info", style: Style = "auto", stream: TextIO | None = None) -> None:
        self._level = level
        self._style = style
        self._stream = sys.stderr if stream is None else stream
        self._logger: FilteringBoundLogger | None = None
        self._held: deque[tuple[Level, dict[str, Any]]] = deque(maxlen=MAX_HELD)

    async def open(self) -> None:
        """Load what writes lines, and write those that waited; harmless when that is done already."""
        if self._logger is None:
            self._logger = await asyncio.to_thread(self._make_logger)
        while self._held:
            self._write(*self._held.popleft())

    def debug(self, event: str, **fields: object) -> None:
        """What only a developer wants to know."""
        self._write("debug", _stamped(event, fields))

    def info(self, event: str, **fields: object) -> None:
        """What happened as it should."""
        self._write("info", _stamped(event, fields))

    def error(self, event: str, error: BaseException | None = None, **fields: object) -> None:
        """What went wrong; with the traceback of `error`."""
        self._write("error", _stamped(event, {**fields, "exc_info": error}))

    def _write(self, level: Level, line: dict[str, Any]) -> None:
        if self._logger is None:
            self._held.append((level, line))
        else:
            self._logger.log(_number(level), **line)

    def _make_logger(self) -> FilteringBoundLogger:
        import structlog  # noqa: PLC0415  # see the head of this file

        as_json = self._style == "json" or (self._style == "auto" and not self._stream.isatty())
        logger: FilteringBoundLogger = structlog.wrap_logger(
            structlog.PrintLogger(self._stream),
            processors=[
                structlog.processors.add_log_level,
                *(_json_look() if as_json else _console_look(has_colors=_has_colors(self._stream))),
            ],
            wrapper_class=structlog.make_filtering_bound_logger(_number(self._level)),
        )
        return logger


def _has_colors(stream: TextIO) -> bool:
    """Whether lines are coloured: on a terminal, unless the environment says otherwise; an empty variable is none."""
    return not os.environ.get("NO_COLOR") and (bool(os.environ.get("FORCE_COLOR")) or stream.isatty())


def _number(level: Level) -> int:
    return logging.getLevelNamesMapping()[level.upper()]


def _stamped(event: str, fields: dict[str, object]) -> dict[str, Any]:
    """A line with the moment at which it was said, which may be before it is written."""
    moment = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return {"event": event, "timestamp": moment, **fields}


def _json_look() -> list[Processor]:
    import structlog  # noqa: PLC0415  # as above

    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]


def _console_look(*, has_colors: bool) -> list[Processor]:
    import structlog  # noqa: PLC0415  # as above

    plain = structlog.dev.plain_traceback
    return [escape_controls, structlog.dev.ConsoleRenderer(colors=has_colors, exception_formatter=plain)]


def escape_controls(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Write control characters as their escapes, so that no request can draw on a terminal or fake a line."""
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], value)
    return event
