"""One request for text, whatever its dialect: from its bytes to the answer's, streamed or whole.

A dialect is a function that reads the body and says what to ask the backend, and how to write what comes back.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from litestar import Request
from litestar.response.base import ASGIResponse

from mlxm.errors import Cancelled, MlxmError, Unavailable
from mlxm.server.answer import Answer
from mlxm.server.body import read_json_body
from mlxm.server.entry import Entry
from mlxm.server.errors import encode_error, guarded
from mlxm.server.limits import Deadline
from mlxm.server.live import Fail
from mlxm.server.request_id import request_id_of
from mlxm.server.services import Services
from mlxm.server.stream import ClientGone, TokenStream, unless_gone
from mlxm.types import Backend, Ended, Event, Started
from mlxm.wire import sse

IGNORED_HEADER = "x-mlxm-ignored"
# A proxy that holds a stream back to compress or collect it would hold the tokens back.
STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}

Write = Callable[[Event], bytes]


def _leave_alone(_: Fail) -> None:
    """Let an answer go its way."""


def _write_error(body: bytes) -> bytes:
    return sse.event("error", body)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamForm:
    """How a dialect's streams say that they live, how they end, and how they break off, given the error's body."""

    keep_alive: bytes = sse.KEEP_ALIVE
    end: bytes = sse.DONE
    write_error: Callable[[bytes], bytes] = _write_error


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A request that was understood: what to ask, and how to write the answer."""

    model: str
    ignored: tuple[str, ...]
    ask: Callable[[Backend], AsyncGenerator[Event, None]]
    write_all: Callable[[Iterable[Event]], bytes]
    writer: Callable[[], Write] | None
    """Makes what writes each event of a stream; None when the answer is wanted whole."""
    form: StreamForm = StreamForm()
    begin: Callable[[Fail], None] = _leave_alone
    """Gets what ends the answer with an error, for those who may want that."""


Understand = Callable[[bytes, str], Question]
"""Reads a body under its request's id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where a dialect is spoken, and how long its answers may take."""

    path: str
    dialect: str
    deadline: Deadline


class Exchange:
    """One request, and what is known of it so far."""

    def __init__(self, services: Services, request: Request[Any, Any, Any], route: Route) -> None:
        self._services = services
        self._request = request
        self._route = route
        self._request_id = request_id_of(request.scope)
        self._entry = Entry(
            services.trail,
            services.log,
            request_id=self._request_id,
            endpoint=route.path,
            dialect=route.dialect,
        )

    async def respond(self, understand: Understand) -> ASGIResponse:
        """The whole answer, or the stream of it; whatever fails before the first byte is raised."""
        try:
            return await guarded(self._answer(understand), self._request_id, self._services.log)
        except MlxmError as error:
            await self._entry.close(error)
            raise

    async def _answer(self, understand: Understand) -> ASGIResponse:
        self._services.live.admit(self._request_id, self._services.limits.max_requests)
        question = understand(await read_json_body(self._request, self._services.limits), self._request_id)
        self._entry.model = question.model
        check_ready(self._services)
        answer = Answer(self._services, question.ask(self._services.backend), self._entry, self._route.deadline)
        question.begin(answer.fail)
        if question.writer is None:
            return await self._whole(answer, question)
        return await self._stream(answer, question.writer(), question)

    async def _whole(self, answer: Answer, question: Question) -> ASGIResponse:
        try:
            events = await unless_gone(answer.take_all(), self._request.receive)
        finally:
            await answer.close()
        body = question.write_all(events)
        await self._entry.close(None)
        return ASGIResponse(body=body, headers=_headers(question, events))

    async def _stream(self, answer: Answer, write: Write, question: Question) -> ASGIResponse:
        """A stream, begun when the first event is there or slow to come: until then an error has its own status."""
        limits = self._services.limits
        try:
            first = await unless_gone(answer.take(limits.keep_alive_s), self._request.receive)
        except BaseException:
            await answer.close()
            raise

        async def finish(cut_short: Cancelled | None) -> None:
            await answer.close()
            await self._entry.close(ClientGone("The client left.") if cut_short is None else cut_short)

        return TokenStream(
            self._chunks(first, answer, write, question.form),
            media_type=sse.MEDIA_TYPE,
            headers={**STREAM_HEADERS, **_headers(question, first)},
            send_timeout_s=limits.send_timeout_s,
            finish=finish,
        )

    async def _chunks(
        self, events: list[Event], answer: Answer, write: Write, form: StreamForm
    ) -> AsyncGenerator[bytes, None]:
        """The stream's bytes; all events that wait together travel together."""
        try:
            while not (events and isinstance(events[-1], Ended)):
                yield await self._written(write, events) if events else form.keep_alive
                events = await answer.take(self._services.limits.keep_alive_s)
            last = await self._written(write, events) + form.end
        except MlxmError as error:
            await self._entry.close(error)
            yield form.write_error(encode_error(error, self._request_id))
            return
        await self._entry.close(None)
        yield last

    async def _written(self, write: Write, events: list[Event]) -> bytes:
        """Events as bytes, inside the server's boundary: a stream does not end without a word."""

        async def work() -> bytes:
            return b"".join(map(write, events))

        return await guarded(work(), self._request_id, self._services.log)


def _headers(question: Question, events: list[Event]) -> dict[str, str]:
    """What of a request came to nothing, as far as the first events tell."""
    unused = (name for event in events[:1] if isinstance(event, Started) for name in event.unused)
    names = tuple(dict.fromkeys((*question.ignored, *unused)))
    return {IGNORED_HEADER: ", ".join(names)} if names else {}


def check_ready(services: Services) -> None:
    """Raise Unavailable while requests are not served."""
    if (reason := services.ready()) is not None:
        raise Unavailable(f"The server is starting: {reason}", hint="Try again in a moment.")
