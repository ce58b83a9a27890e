"""What a parser of answers hands out: neutral events of one choice, its calls numbered and told apart."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

from mlxm.engine.formats_reader import Reader, Reading
from mlxm.engine.formats_schema import ParameterTypes
from mlxm.types import Event, ReasoningDelta, TextDelta, TokenLogprobs, ToolCallDelta, ToolCallStarted

NewId = Callable[[], str]


def new_call_id() -> str:
    """An id that no other call has."""
    return f"call_{secrets.token_hex(12)}"


class Outlet:
    """Gathers what one piece of text means; pieces of a kind that follow each other become one event."""

    def __init__(self, choice: int, new_id: NewId = new_call_id) -> None:
        self._choice = choice
        self._new_id = new_id
        self._ids: set[str] = set()
        self._events: list[ToolCallStarted | tuple[Literal["text", "reasoning", "arguments"], list[str]]] = []
        self.num_calls = 0

    def content(self, text: str) -> None:
        """More of the answer."""
        self._add("text", text)

    def reasoning(self, text: str) -> None:
        """More of what the model thinks before it answers."""
        self._add("reasoning", text)

    def arguments(self, text: str) -> None:
        """More of the latest call's arguments."""
        self._add("arguments", text)

    def start_call(self, name: str, call_id: str | None) -> None:
        """A call begins, with the model's own id if it gave one that no call has yet."""
        if call_id is None or call_id in self._ids:
            call_id = self._new_id()
        self._ids.add(call_id)
        self._events.append(ToolCallStarted(choice=self._choice, index=self.num_calls, id=call_id, name=name))
        self.num_calls += 1

    def drain(self, token_ids: tuple[int, ...], logprobs: tuple[TokenLogprobs, ...]) -> list[Event]:
        """The events since last time; the tokens go with the first of them that can carry any."""
        events: list[Event] = []
        index = self.num_calls - 1 - sum(isinstance(event, ToolCallStarted) for event in self._events)
        for event in self._events:
            if isinstance(event, ToolCallStarted):
                index = event.index
                events.append(event)
                continue
            kind, pieces = event
            if kind == "arguments":
                events.append(ToolCallDelta(self._choice, index, "".join(pieces)))
                continue
            delta = TextDelta if kind == "text" else ReasoningDelta
            events.append(delta(self._choice, "".join(pieces), token_ids, logprobs))
            token_ids, logprobs = (), ()
        self._events.clear()
        return events

    def _add(self, kind: Literal["text", "reasoning", "arguments"], text: str) -> None:
        if not text:
            return
        last = self._events[-1] if self._events else None
        if isinstance(last, tuple) and last[0] == kind:
            last[1].append(text)
        else:
            self._events.append((kind, [text]))


class Calls:
    """The calls of one answer, as those who read them hand them out."""

    def __init__(self, reader: Reader, outlet: Outlet, tools: Mapping[str, ParameterTypes]) -> None:
        self.reader = reader
        self._outlet = outlet
        self._tools = tools

    @property
    def num_started(self) -> int:
        """How many calls there are so far."""
        return self._outlet.num_calls

    def knows(self, name: str) -> bool:
        """Whether the request offers a tool of that name."""
        return name in self._tools

    def types(self, name: str) -> ParameterTypes:
        """What the arguments of a tool are; nothing is known of those of an unknown one."""
        return self._tools.get(name, {})

    def start(self, name: str, call_id: str | None = None) -> None:
        """A call begins; it cannot be taken back."""
        self.reader.release()
        self._outlet.start_call(name, call_id)

    def arguments(self, text: str) -> None:
        """More of its arguments."""
        self._outlet.arguments(text)

    def end(self) -> None:
        """The call is complete; what follows and turns out to be no call is read again as text."""
        self.reader.hold()


class ToolFormat(Protocol):
    """One way in which models write calls."""

    @property
    def name(self) -> str:
        """What the table of families calls it."""
        ...

    @property
    def before(self) -> str:
        """What its family's template puts between text and a call."""
        ...

    @property
    def markers(self) -> tuple[str, ...]:
        """The markup that special tokens may spell."""
        ...

    def openers(self) -> tuple[str, ...]:
        """What a call begins with, wherever it stands."""
        ...

    def lead_openers(self, tools: Sequence[str]) -> tuple[str, ...]:
        """What a call of one of the tools begins with when nothing of the answer stands before it."""
        ...

    def read(self, opener: str, calls: Calls) -> Reading[None]:
        """Read calls from behind the opener on; raises NotACall."""
        ...
