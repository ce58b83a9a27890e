"""Anthropic's routes: messages, and the counting of their tokens."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import msgspec
from litestar import Request, post
from litestar.handlers import HTTPRouteHandler
from litestar.response import Response
from litestar.response.base import ASGIResponse

from mlxm.server.body import read_json_body
from mlxm.server.exchange import IGNORED_HEADER, Exchange, Question, Route, StreamForm, check_ready
from mlxm.server.request_id import request_id_of
from mlxm.server.room import chat_in_room
from mlxm.server.services import Services
from mlxm.types import Models
from mlxm.wire import anthropic_messages, anthropic_messages_answers
from mlxm.wire.anthropic_messages_answers import PING, EventWriter, Heading, TokenCount

MESSAGES: Final = "/v1/messages"
COUNT_TOKENS: Final = "/v1/messages/count_tokens"
_FORM: Final = StreamForm(keep_alive=PING, end=b"")


def anthropic_routes(services: Services) -> list[HTTPRouteHandler]:
    """Every route of this dialect; tokens are counted where the backend knows its models."""
    route = Route(path=MESSAGES, dialect="anthropic", deadline=services.timeouts.chat())

    @post(MESSAGES, status_code=200)
    async def answer(request: Request[Any, Any, Any]) -> ASGIResponse:
        return await Exchange(services, request, route).respond(_understand)

    return [answer] if services.models is None else [answer, _count_route(services, services.models)]


def _count_route(services: Services, models: Models) -> HTTPRouteHandler:
    @post(COUNT_TOKENS, status_code=200)
    async def count_tokens(request: Request[Any, Any, Any]) -> Response[bytes]:
        asked = anthropic_messages.read_count_tokens(await read_json_body(request, services.limits))
        understood = asked.request.to_chat(request_id_of(request.scope))
        check_ready(services)
        encoded = await models.tokenize(understood.chat)
        ignored = (*asked.ignored, *understood.ignored)
        return Response(
            msgspec.json.encode(TokenCount(len(encoded.ids))),
            media_type="application/json",
            headers={IGNORED_HEADER: ", ".join(ignored)} if ignored else {},
        )

    return count_tokens


def _understand(body: bytes, request_id: str) -> Question:
    asked = anthropic_messages.read_messages(body)
    request = asked.request
    understood = request.to_chat(request_id)
    chat = understood.chat
    heading = Heading.of(request_id, chat.model, shows_thinking=request.shows_thinking)

    def writer() -> Callable[..., bytes]:
        return EventWriter(heading).write

    return Question(
        model=chat.model,
        ignored=(*asked.ignored, *understood.ignored),
        ask=lambda backend: chat_in_room(backend, chat),
        write_all=partial(anthropic_messages_answers.message, heading),
        writer=writer if request.stream else None,
        form=_FORM,
    )
