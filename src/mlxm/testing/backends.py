"""Backends without a model, for tests of whatever stands above: every event, wait and failure is in the script.

They are deterministic and look at no clock; time passes where a script says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from functools import partial

from mlxm.errors import ModelNotFound
from mlxm.types import ChatRequest, ChoiceEnded, Ended, Event, FinishReason, Message, Started, TextDelta, TextPart, Usage

ECHO_MODEL = "mlxm/echo"

Wait = Callable[[], Awaitable[object]]
Step = Event | Exception | Wait
Script = Callable[[ChatRequest], Iterable[Step]]


class Counts:
    """What became of a backend's requests, and how many events they had."""

    def __init__(self) -> None:
        self.started = 0
        self.finished = 0
        self.failed = 0
        self.cancelled = 0
        self.events = 0

    @property
    def active(self) -> int:
        """Requests that have begun and not ended."""
        return self.started - self.finished - self.failed - self.cancelled


class ScriptedBackend:
    """Plays a script for each request: sends its events, awaits its waits, raises its exceptions.

    `at_end` is awaited when a request ends in whatever way. `idle` is set while no request runs.
    """

    def __init__(self, script: Script, *, at_end: Wait | None = None) -> None:
        self._script = script
        self._at_end = at_end
        self.counts = Counts()
        self.requests: list[ChatRequest] = []
        self.idle = asyncio.Event()
        self.idle.set()
        self.is_closed = False

    async def start(self) -> None:
        """Be ready; there is nothing to start."""

    async def close(self) -> None:
        """Remember that it was closed."""
        self.is_closed = True

    def ready(self) -> str | None:
        """Why requests are not served yet: never."""
        return None

    async def chat(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        """Play the script, and count how it ended."""
        self._begin(request)
        outcome = "cancelled"
        try:
            for step in self._script(request):
                if isinstance(step, Event):
                    self.counts.events += 1
                    yield step
                elif isinstance(step, Exception):
                    outcome = "failed"
                    raise step
                else:
                    await step()
            outcome = "finished"
        finally:
            try:
                if self._at_end is not None:
                    await self._at_end()
            finally:
                self._end(outcome)

    def _begin(self, request: ChatRequest) -> None:
        self.requests.append(request)
        self.counts.started += 1
        self.idle.clear()

    def _end(self, outcome: str) -> None:
        match outcome:
            case "finished":
                self.counts.finished += 1
            case "failed":
                self.counts.failed += 1
            case _:
                self.counts.cancelled += 1
        if self.counts.active == 0:
            self.idle.set()


class EchoBackend(ScriptedBackend):
    """Says the last message back, a word at a time, under the name `mlxm/echo`; `pace` is awaited before each word."""

    def __init__(self, *, pace: Wait | None = None, at_end: Wait | None = None) -> None:
        super().__init__(partial(echo, pace=pace), at_end=at_end)


def echo(request: ChatRequest, pace: Wait | None = None) -> Iterator[Step]:
    """The script of EchoBackend: a token is a word, prompts are counted in words too."""
    if request.model != ECHO_MODEL:
        yield ModelNotFound(f"There is no model {request.model}.", hint=f"Ask for {ECHO_MODEL}.", param="model")
    num_prompt = sum(len(_said(message).split()) for message in request.messages)
    yield Started(num_prompt)
    text = _said(request.messages[-1])
    words, reason = _cut([word for word in text.split(" ") if word], request)
    for index, word in enumerate(words):
        if pace is not None:
            yield pace
        yield TextDelta(choice=0, text=word if index == 0 else f" {word}", token_ids=(index,))
    yield ChoiceEnded(choice=0, reason=reason)
    yield Ended(Usage(prompt_tokens=num_prompt, completion_tokens=len(words)))


def _said(message: Message) -> str:
    return "".join(part.text for part in message.content if isinstance(part, TextPart))


def _cut(words: list[str], request: ChatRequest) -> tuple[list[str], FinishReason]:
    """The words up to a stop word or the limit."""
    end = next((index for index, word in enumerate(words) if word in request.stop), len(words))
    if request.max_tokens is not None and request.max_tokens < end:
        return words[: request.max_tokens], "length"
    return words[:end], "stop"
