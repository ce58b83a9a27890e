"""OpenAI's responses: asking for one, and fetching, cancelling and deleting those that are there."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import msgspec
from litestar import Request, delete, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath
from litestar.response import Response
from litestar.response.base import ASGIResponse

from mlxm.errors import InvalidRequest
from mlxm.server.exchange import Exchange, Question, Route, StreamForm
from mlxm.server.services import Services
from mlxm.server.talk import Asked, Talk
from mlxm.store.responses import Responses
from mlxm.wire import openai_responses, openai_responses_events
from mlxm.wire.openai_responses_events import EventWriter
from mlxm.wire.openai_responses_items import ItemPageAsked
from mlxm.wire.tagged import decode_query

RESPONSES: Final = "/v1/responses"
_ONE: Final = f"{RESPONSES}/{{response_id:str}}"
_JSON: Final = "application/json"

UnderWay = dict[str, Talk]


def responses_routes(services: Services) -> list[HTTPRouteHandler]:
    """Every route of this dialect; stored responses are there where there is a database."""
    under_way: UnderWay = {}
    route = Route(path=RESPONSES, dialect="openai-responses", deadline=services.timeouts.chat())

    @post(RESPONSES, status_code=200)
    async def answer(request: Request[Any, Any, Any]) -> ASGIResponse:
        store = await _store(services)
        return await Exchange(services, request, route).respond(partial(_understand, store=store, under_way=under_way))

    return [answer, *_stored_routes(services, under_way)]


def _stored_routes(services: Services, under_way: UnderWay) -> list[HTTPRouteHandler]:
    @get(_ONE)
    async def show(request: Request[Any, Any, Any], response_id: FromPath[str]) -> Response[bytes]:
        if request.query_params.get("stream", "false") == "true":
            raise InvalidRequest("Stored responses are not streamed.", hint="Leave it out.", param="stream")
        return Response((await (await _needed(services)).find(response_id)).response, media_type=_JSON)

    @delete(_ONE, status_code=200)
    async def forget(response_id: FromPath[str]) -> Response[bytes]:
        await (await _needed(services)).delete(response_id)
        told = {"id": response_id, "object": "response.deleted", "deleted": True}
        return Response(msgspec.json.encode(told), media_type=_JSON)

    @get(f"{_ONE}/input_items")
    async def list_items(request: Request[Any, Any, Any], response_id: FromPath[str]) -> Response[bytes]:
        asked = decode_query(dict(request.query_params), ItemPageAsked)
        stored = await (await _needed(services)).find(response_id)
        items = msgspec.json.decode(stored.input, type=list[msgspec.Raw])
        return Response(asked.encode(items), media_type=_JSON)

    @post(f"{_ONE}/cancel", status_code=200)
    async def cancel(response_id: FromPath[str]) -> Response[bytes]:
        if (talk := under_way.get(response_id)) is not None:
            return Response(msgspec.json.encode(await talk.cancel()), media_type=_JSON)
        return Response((await (await _needed(services)).find(response_id)).response, media_type=_JSON)

    return [show, forget, list_items, cancel]


async def _store(services: Services) -> Responses | None:
    """What keeps responses, where anything does."""
    if services.database is None or services.keep_responses_s <= 0:
        return None
    return Responses(await services.database(), keep_s=services.keep_responses_s)


async def _needed(services: Services) -> Responses:
    store = await _store(services)
    if store is None:
        raise _no_store("store")
    return store


def _no_store(param: str) -> InvalidRequest:
    return InvalidRequest(
        "Responses are not stored here.",
        hint="The setting server.keep_responses_s says how long they are kept.",
        param=param,
    )


def _understand(body: bytes, request_id: str, *, store: Responses | None, under_way: UnderWay) -> Question:
    asked = openai_responses.read_request(body)
    request = asked.request
    chat = request.to_chat(request_id)
    if request.previous_response_id is not None and store is None:
        raise _no_store("previous_response_id")
    talk = Talk(
        Asked(
            request=request,
            request_id=request_id,
            response_id=f"resp_{secrets.token_hex(16)}",
            past=store,
            store=None if request.store is False else store,
        ),
        under_way,
    )
    writer = EventWriter(talk.heading)

    def write() -> Callable[..., bytes]:
        return writer.write

    return Question(
        model=chat.model,
        ignored=asked.ignored,
        ask=talk.events,
        write_all=partial(openai_responses_events.response, talk.heading),
        writer=write if request.stream else None,
        form=StreamForm(end=b"", write_error=writer.write_error),
        begin=talk.begin,
    )
