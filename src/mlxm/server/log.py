"""How log lines look: JSON for programs, plain lines for people; on stderr, with no control character let through."""

from __future__ import annotations

import logging
import re
import sys
from typing import Literal

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


Level = Literal["debug", "info", "warning", "error"]
Style = Literal["auto", "console", "json"]


def configure_log(level: Level, style: Style) -> None:
    """Set up the process's log, once."""
    as_json = style == "json" or (style == "auto" and not sys.stderr.isatty())
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *(_json_look() if as_json else _console_look()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def _json_look() -> list[Processor]:
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]


def _console_look() -> list[Processor]:
    renderer = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
    )
    return [escape_controls, renderer]


def escape_controls(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Write control characters as their escapes, so that no request can draw on a terminal or fake a line."""
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], value)
    return event
