"""What a golden transcript is, and the tools that are offered in it."""

from __future__ import annotations

from typing import NamedTuple

from mlxm.engine.formats.families import FAMILIES, GENERIC, Family
from mlxm.types import Tool

WEATHER = Tool(
    name="get_weather",
    parameters="""{"type": "object", "properties": {
        "city": {"type": "string"}, "days": {"type": "integer"}, "exact": {"type": "boolean"},
        "places": {"type": "array", "items": {"type": "string"}}, "note": {"type": ["string", "null"]}}}""",
)
NOW = Tool(name="time.now-utc", parameters='{"type": "object", "properties": {}}')
TOOLS = (WEATHER, NOW)
BY_NAME = {entry.family.name: entry.family for entry in FAMILIES} | {GENERIC.name: GENERIC}


class Call(NamedTuple):
    """A call, and the id if it is the model's own."""

    name: str
    arguments: str
    id: str | None = None


class Transcript(NamedTuple):
    """A model's text, and what comes of it."""

    family: str
    about: str
    text: str
    content: str = ""
    reasoning: str = ""
    calls: tuple[Call, ...] = ()
    ending: str = ""
    has_tools: bool = True

    @property
    def id(self) -> str:
        """The name of its test."""
        return f"{self.family}: {self.about}"


def family_of(transcript: Transcript) -> Family:
    """The table's entry."""
    return BY_NAME[transcript.family]


LONDON = '{"city": "London"}'
HARD = '{"city": "a\\"}</tool_call>{[\\\\", "places": ["x]", "<think>"]}'
CALL = Call("get_weather", LONDON)
