"""OpenAI's routes: from a request's bytes to the answer's, streamed or whole."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from typing import Any

from litestar import Request, post
from litestar.handlers import HTTPRouteHandler
from litestar.response.base import ASGIResponse

from mlxm.errors import Cancelled, MlxmError, Unavailable
from mlxm.server.answer import Answer
from mlxm.server.body import read_json_body
from mlxm.server.entry import Entry
from mlxm.server.errors import encode_error, guarded
from mlxm.server.request_id import request_id_of
from mlxm.server.services import Services
from mlxm.server.stream import ClientGone, TokenStream, unless_gone
from mlxm.types import Ended, Event
from mlxm.wire import openai_chat, sse

CHAT_COMPLETIONS = "/v1/chat/completions"
IGNORED_HEADER = "x-mlxm-ignored"
# A proxy that holds a stream back to compress or collect it would hold the tokens back.
STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


def chat_completions_route(services: Services) -> HTTPRouteHandler:
    """`POST /v1/chat/completions`."""

    @post(CHAT_COMPLETIONS, status_code=200)
    async def chat_completions(request: Request[Any, Any, Any]) -> ASGIResponse:
        exchange = _ChatExchange(services, request)
        return await exchange.respond()

    return chat_completions


class _ChatExchange:
    """One request for a chat completion, and what is known of it so far."""

    def __init__(self, services: Services, request: Request[Any, Any, Any]) -> None:
        self._services = services
        self._request = request
        self._request_id = request_id_of(request.scope)
        self._entry = Entry(
            services.trail, services.log, request_id=self._request_id, endpoint=CHAT_COMPLETIONS, dialect="openai"
        )

    async def respond(self) -> ASGIResponse:
        """The whole answer, or the stream of it; whatever fails before the first byte is raised."""
        try:
            return await guarded(self._answer(), self._request_id, self._services.log)
        except MlxmError as error:
            await self._entry.close(error)
            raise

    async def _answer(self) -> ASGIResponse:
        asked = openai_chat.read_request(await read_json_body(self._request, self._services.limits))
        self._entry.model = asked.request.model
        if (reason := self._services.ready()) is not None:
            raise Unavailable(f"The server is starting: {reason}", hint="Try again in a moment.")
        chat = asked.request.to_chat(self._request_id)
        heading = openai_chat.Heading.of(chat, created=int(time.time()))
        headers = {IGNORED_HEADER: ", ".join(asked.ignored)} if asked.ignored else {}
        answer = Answer(self._services, chat, self._entry)
        if not asked.request.stream:
            return await self._whole(answer, heading, headers)
        options = asked.request.stream_options
        writer = openai_chat.ChunkWriter(heading, include_usage=options is not None and options.include_usage)
        return await self._stream(answer, writer, headers)

    async def _whole(self, answer: Answer, heading: openai_chat.Heading, headers: dict[str, str]) -> ASGIResponse:
        try:
            events = await unless_gone(answer.take_all(), self._request.receive)
        finally:
            await answer.close()
        await self._entry.close(None)
        return ASGIResponse(body=openai_chat.completion(heading, events), headers=headers)

    async def _stream(self, answer: Answer, writer: openai_chat.ChunkWriter, headers: dict[str, str]) -> ASGIResponse:
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
            self._chunks(first, answer, writer),
            media_type=sse.MEDIA_TYPE,
            headers={**STREAM_HEADERS, **headers},
            send_timeout_s=limits.send_timeout_s,
            finish=finish,
        )

    async def _chunks(
        self, events: list[Event], answer: Answer, writer: openai_chat.ChunkWriter
    ) -> AsyncGenerator[bytes, None]:
        """The stream's bytes; all events that wait together travel together."""
        try:
            while not (events and isinstance(events[-1], Ended)):
                yield b"".join(map(writer.write, events)) if events else sse.KEEP_ALIVE
                events = await answer.take(self._services.limits.keep_alive_s)
        except MlxmError as error:
            await self._entry.close(error)
            yield sse.event("error", encode_error(error, self._request_id))
            return
        await self._entry.close(None)
        yield b"".join(map(writer.write, events)) + sse.DONE
