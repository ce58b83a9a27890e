"""What a parser of answers hands out: neutral events of one choice, its calls numbered and told apart."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

from mlxm.engine.formats.lark import Rules, Written
from mlxm.engine.formats.reader import Reader, Reading
from mlxm.engine.formats.schema import ParameterTypes
from mlxm.types import Event, ReasoningDelta, TextDelta, TokenLogprobs, Tool, ToolCallDelta, ToolCallStarted

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
        self._token_ids: tuple[int, ...] = ()
        self._logprobs: tuple[TokenLogprobs, ...] = ()
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

    def carry(self, token_ids: tuple[int, ...], logprobs: tuple[TokenLogprobs, ...]) -> None:
        """These tokens go with the next text."""
        self._token_ids += token_ids
        self._logprobs += logprobs

    def drain(self) -> list[Event]:
        """The events since last time."""
        index = self.num_calls - 1 - sum(isinstance(event, ToolCallStarted) for event in self._events)
        events: list[Event] = []
        for event in self._events:
            if isinstance(event, ToolCallStarted):
                index = event.index
                events.append(event)
            elif event[0] == "arguments":
                events.append(ToolCallDelta(self._choice, index, "".join(event[1])))
            else:
                events.append(self._delta(TextDelta if event[0] == "text" else ReasoningDelta, "".join(event[1])))
        self._events.clear()
        return events

    def finish(self) -> list[Event]:
        """The last events; tokens that no text came for go with an empty one."""
        events = self.drain()
        return [*events, self._delta(TextDelta, "")] if self._token_ids else events

    def _delta(self, kind: type[TextDelta | ReasoningDelta], text: str) -> TextDelta | ReasoningDelta:
        delta = kind(self._choice, text, self._token_ids, self._logprobs)
        self._token_ids, self._logprobs = (), ()
        return delta

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

    @property
    def tool_names(self) -> tuple[str, ...]:
        """The tools that the request offers."""
        return tuple(self._tools)

    def knows(self, name: str) -> bool:
        """Whether the request offers a tool of that name."""
        return name in self._tools

    def types(self, name: str) -> ParameterTypes:
        """What the arguments of a tool are; nothing is known of those of an unknown one."""
        return self._tools.get(name, {})

    def start(self, name: str, call_id: str | None = None) -> None:
        """A call begins, which cannot be taken back; raises NotACall when it took too much text to say so."""
        self.reader.check_held()
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

    def write(self, rules: Rules, tools: Sequence[Tool], *, several: bool) -> Written:
        """What the model has to write to call one of the tools, or several times."""
        ...
