"""The server's log: JSON lines for programs, plain ones for people; on stderr, with no control character let through.

structlog takes a good part of the server's start to import, so that happens at the first line, or in `warm`.
"""

from __future__ import annotations

import logging
import re
import sys
from functools import cached_property
from typing import TYPE_CHECKING, Literal, TextIO

if TYPE_CHECKING:
    from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

Level = Literal["debug", "info", "warning", "error"]
Style = Literal["auto", "console", "json"]

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class Log:
    """Where the server says what happens; every line about a request carries its id."""

    def __init__(self, level: Level = "info", style: Style = "auto", stream: TextIO | None = None) -> None:
        self._level = level
        self._style = style
        self._stream = sys.stderr if stream is None else stream

    def warm(self) -> None:
        """Load now what the first line needs."""
        self._logger.bind()

    def debug(self, event: str, **fields: object) -> None:
        """What only a developer wants to know."""
        self._logger.debug(event, **fields)

    def info(self, event: str, **fields: object) -> None:
        """What happened as it should."""
        self._logger.info(event, **fields)

    def error(self, event: str, error: BaseException | None = None, **fields: object) -> None:
        """What went wrong; with the traceback of `error`."""
        self._logger.error(event, exc_info=error, **fields)

    @cached_property
    def _logger(self) -> FilteringBoundLogger:
        import structlog  # noqa: PLC0415  # see the head of this file

        as_json = self._style == "json" or (self._style == "auto" and not self._stream.isatty())
        logger: FilteringBoundLogger = structlog.wrap_logger(
            structlog.PrintLogger(self._stream),
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                *(_json_look() if as_json else _console_look(has_colors=self._stream.isatty())),
            ],
            wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[self._level.upper()]),
        )
        return logger.bind()


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
