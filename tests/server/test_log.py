import asyncio
import io
import json
import os
import pty
from datetime import UTC, datetime
from typing import TextIO

import pytest

from mlxm.server.log import Level, Log, Style

NASTY = "line\nbreak \x1b[31mred\x1b[0m bell\x07 next\x85 sep\u2028"


def opened(level: Level, style: Style, stream: TextIO) -> Log:
    """A log that writes at once."""
    log = Log(level, style, stream)
    asyncio.run(log.open())
    return log


def test_early_lines_wait() -> None:
    """What is said before the log is open is written then, in order, with the time at which it was said."""
    stream = io.StringIO()
    log = Log("info", "json", stream)
    log.info("first")
    said_before = datetime.now(UTC)
    assert stream.getvalue() == ""

    async def scenario() -> None:
        await log.open()
        log.info("second")
        await log.open()

    asyncio.run(scenario())
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["first", "second"]
    assert datetime.fromisoformat(lines[0]["timestamp"]) <= said_before


def test_json_lines() -> None:
    """Without a terminal each line is one JSON object, whatever is in it."""
    stream = io.StringIO()
    log = Log("info", "auto", stream)
    asyncio.run(log.open())
    log.debug("unseen")
    log.info("seen", request_id="req_1", path=NASTY)
    (line,) = stream.getvalue().splitlines()
    entry = json.loads(line)
    assert (entry["event"], entry["level"], entry["request_id"], entry["path"]) == ("seen", "info", "req_1", NASTY)
    assert entry["timestamp"].endswith("Z")


def test_errors_carry_their_traceback() -> None:
    """An error's words and where it came from are in the line."""
    stream = io.StringIO()
    try:
        int(NASTY)
    except ValueError as error:
        opened("error", "json", stream).error("failed", error, request_id="req_1")
    entry = json.loads(stream.getvalue())
    assert "test_log.py" in entry["exception"]
    assert "ValueError" in entry["exception"]
    assert stream.getvalue().isascii()


@pytest.mark.parametrize("style", ["console", "auto"])
def test_lines_for_people(style: str) -> None:
    """On a terminal lines are words, and no request can draw there or begin a line of its own."""
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        log = opened("debug", "console" if style == "console" else "auto", terminal)
        log.debug("seen", path=NASTY, method=NASTY.replace(" ", "").replace("\n", ""))
        terminal.flush()
        shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert shown.count("\n") == 1
    for harmful in ("\x1b[31m", "\x07", "\x85", "\u2028"):
        assert harmful not in shown
        assert ascii(harmful)[1:-1] in shown


def test_level_is_obeyed() -> None:
    """Less important lines are not written."""
    stream = io.StringIO()
    log = opened("error", "json", stream)
    log.info("unseen")
    log.error("seen")
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["seen"]


@pytest.mark.parametrize(
    ("env", "colored"),
    [
        ({}, False),
        ({"FORCE_COLOR": "1"}, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
        ({"NO_COLOR": "1"}, False),
    ],
)
def test_environment_chooses_colors(env: dict[str, str], colored: bool, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: FBT001
    """Lines for people are coloured where that is asked for, as everything else that mlxm prints."""
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    stream = io.StringIO()
    opened("info", "console", stream).info("seen")
    assert ("\x1b[" in stream.getvalue()) == colored


def test_no_color_holds_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who wants no colours gets none, wherever the log goes."""
    monkeypatch.setenv("NO_COLOR", "1")
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        opened("info", "console", terminal).info("seen")
        terminal.flush()
        shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert "seen" in shown
    assert "\x1b" not in shown
