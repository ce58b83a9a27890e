"""Backends without a model, for tests of whatever stands above: every event, wait and failure is in the script.

They are deterministic and look at no clock; time passes where a script says so.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from functools import partial

import msgspec

from mlxm.errors import InvalidRequest, ModelNotFound
from mlxm.types import (
    ChatRequest,
    ChoiceEnded,
    CompletionRequest,
    Encoded,
    Ended,
    Event,
    FinishReason,
    Likely,
    Message,
    ModelInfo,
    Started,
    TextDelta,
    TextPart,
    TokenLogprobs,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)

ECHO_MODEL = "mlxm/echo"
ECHO_CONTEXT = 4096

Request = ChatRequest | CompletionRequest
Wait = Callable[[], Awaitable[object]]
Step = Event | Exception | Wait
Script = Callable[[Request], Iterable[Step]]


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
        self.requests: list[Request] = []
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

    def chat(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        """Play the script, and count how it ended."""
        return self._play(request)

    def complete(self, request: CompletionRequest) -> AsyncGenerator[Event, None]:
        """Play the script, and count how it ended."""
        return self._play(request)

    async def list_models(self) -> tuple[ModelInfo, ...]:
        """The one model there is."""
        return (ModelInfo(name=ECHO_MODEL, context_length=ECHO_CONTEXT, is_loaded=True),)

    async def find_model(self, name: str) -> ModelInfo:
        """The one model, or ModelNotFound."""
        _check_name(name)
        return (await self.list_models())[0]

    async def tokenize(self, request: Request, *, is_bare: bool = False) -> Encoded:
        """A token is a character here, after one that begins each prompt unless it `is_bare`."""
        _check_name(request.model)
        beginning = () if is_bare else (0,)
        return Encoded(ids=(*beginning, *map(ord, _prompt(request))), context_length=ECHO_CONTEXT)

    async def detokenize(self, model: str, ids: tuple[int, ...]) -> str:
        """The characters."""
        _check_name(model)
        if any(each > sys.maxunicode for each in ids):
            raise InvalidRequest("There is no such token.", param="tokens")
        return "".join(map(chr, ids))

    async def _play(self, request: Request) -> AsyncGenerator[Event, None]:
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

    def _begin(self, request: Request) -> None:
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


def echo(request: Request, pace: Wait | None = None) -> Iterator[Step]:
    """The script of EchoBackend: a token is a word, prompts are counted in words too.

    A tool that must be called is called with the words as its argument.
    """
    try:
        _check_name(request.model)
    except ModelNotFound as error:
        yield error
    num_prompt = len(_prompt(request).split())
    yield Started(num_prompt)
    num_words = 0
    for choice in range(request.num_choices):
        words, reason = _cut([word for word in _last(request).split(" ") if word], request)
        num_words += len(words)
        if isinstance(request, ChatRequest) and request.tool_choice.mode in ("required", "named"):
            yield from _call(choice, words, request)
        else:
            yield from _say(choice, words, request, pace)
            yield ChoiceEnded(choice=choice, reason=reason)
    yield Ended(Usage(prompt_tokens=num_prompt, completion_tokens=num_words))


def _say(choice: int, words: list[str], request: Request, pace: Wait | None) -> Iterator[Step]:
    if isinstance(request, CompletionRequest) and request.echoes:
        yield TextDelta(choice=choice, text=f"{_prompt(request)} ")
    for index, word in enumerate(words):
        if pace is not None:
            yield pace
        text = word if index == 0 else f" {word}"
        yield TextDelta(choice=choice, text=text, token_ids=(index,), logprobs=_logprobs(index, text, request))


def _call(choice: int, words: list[str], request: ChatRequest) -> Iterator[Step]:
    named = request.tool_choice.name
    name = request.tools[0].name if named is None else named
    yield ToolCallStarted(choice=choice, index=0, id=f"call_{choice}", name=name)
    arguments = msgspec.json.encode({"words": words}).decode()
    for at in range(0, len(arguments), 8):
        yield ToolCallDelta(choice=choice, index=0, arguments=arguments[at : at + 8])
    yield ChoiceEnded(choice=choice, reason="tool_calls")


def _logprobs(index: int, text: str, request: Request) -> tuple[TokenLogprobs, ...]:
    """Made up: each word was as likely as its place says, and its capitals half as likely."""
    if request.num_logprobs is None:
        return ()
    raw, other = text.encode(), text.upper().encode()
    likely = (Likely(index, raw, -0.5 - index), Likely(index + 1000, other, -1.0 - index))
    return (TokenLogprobs(index, raw, -0.5 - index, likely[: request.num_logprobs]),)


def _check_name(name: str) -> None:
    if name != ECHO_MODEL:
        raise ModelNotFound(f"There is no model {name}.", hint=f"Ask for {ECHO_MODEL}.", param="model")


def _prompt(request: Request) -> str:
    if isinstance(request, ChatRequest):
        return " ".join(map(_said, request.messages))
    return request.prompt if isinstance(request.prompt, str) else " ".join(map(str, request.prompt))


def _last(request: Request) -> str:
    return _said(request.messages[-1]) if isinstance(request, ChatRequest) else _prompt(request)


def _said(message: Message) -> str:
    return "".join(part.text for part in message.content if isinstance(part, TextPart))


def _cut(words: list[str], request: Request) -> tuple[list[str], FinishReason]:
    """The words up to a stop word or the limit."""
    end = next((index for index, word in enumerate(words) if word in request.stop), len(words))
    if request.max_tokens is not None and request.max_tokens < end:
        return words[: request.max_tokens], "length"
    return words[:end], "stop"
