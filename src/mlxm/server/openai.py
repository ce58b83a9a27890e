"""OpenAI's routes: chats and completions, and their mirrors for work that can wait."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from litestar import Request, post
from litestar.handlers import HTTPRouteHandler
from litestar.response.base import ASGIResponse

from mlxm.server.exchange import Exchange, Question, Route, Understand
from mlxm.server.prompts import complete_all
from mlxm.server.services import Services
from mlxm.wire import openai_chat, openai_chat_answers, openai_completions, openai_completions_answers
from mlxm.wire.openai_completions_answers import Wanted
from mlxm.wire.openai_usage import Heading

CHAT_COMPLETIONS = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
BATCH_CHAT_COMPLETIONS = "/v1/batch/chat/completions"
BATCH_COMPLETIONS = "/v1/batch/completions"
_DIALECT = "openai"


def openai_routes(services: Services) -> list[HTTPRouteHandler]:
    """Every route on which a text is asked for."""
    chat, completions = services.timeouts.chat(), services.timeouts.completions()
    return [
        _route(services, Route(path=CHAT_COMPLETIONS, dialect=_DIALECT, deadline=chat), _understand_chat),
        _route(services, Route(path=COMPLETIONS, dialect=_DIALECT, deadline=completions), _understand_completion),
        _route(
            services,
            Route(path=BATCH_CHAT_COMPLETIONS, dialect=_DIALECT, deadline=chat),
            partial(_understand_chat, is_batch=True),
        ),
        _route(
            services,
            Route(path=BATCH_COMPLETIONS, dialect=_DIALECT, deadline=completions),
            partial(_understand_completion, is_batch=True),
        ),
    ]


def _route(services: Services, route: Route, understand: Understand) -> HTTPRouteHandler:
    @post(route.path, status_code=200)
    async def answer(request: Request[Any, Any, Any]) -> ASGIResponse:
        return await Exchange(services, request, route).respond(understand)

    return answer


def _understand_chat(body: bytes, request_id: str, *, is_batch: bool = False) -> Question:
    asked = openai_chat.read_request(body)
    request = asked.request
    chat = request.to_chat(request_id, is_batch=is_batch)
    heading = _heading(openai_chat_answers.KIND, request_id, chat.model)
    write_all = partial(openai_chat_answers.completion, heading, has_logprobs=chat.num_logprobs is not None)

    def writer() -> Callable[..., bytes]:
        return openai_chat_answers.ChunkWriter(
            heading, include_usage=request.includes_usage, num_choices=chat.num_choices
        ).write

    return Question(
        model=chat.model,
        ignored=asked.ignored,
        ask=lambda backend: backend.chat(chat),
        write_all=write_all,
        writer=writer if request.stream else None,
    )


def _understand_completion(body: bytes, request_id: str, *, is_batch: bool = False) -> Question:
    asked = openai_completions.read_request(body)
    request = asked.request
    prompts = request.to_completions(request_id, is_batch=is_batch)
    heading = _heading(openai_completions_answers.KIND, request_id, request.model)
    wanted = Wanted(
        num_tried=request.num_tried, num_choices=request.num_choices, has_logprobs=request.logprobs is not None
    )

    def writer() -> Callable[..., bytes]:
        return openai_completions_answers.ChunkWriter(heading, include_usage=request.includes_usage).write

    return Question(
        model=request.model,
        ignored=asked.ignored,
        ask=lambda backend: complete_all(backend, prompts),
        write_all=partial(openai_completions_answers.completion, heading, wanted=wanted),
        writer=writer if request.stream else None,
    )


def _heading(kind: str, request_id: str, model: str) -> Heading:
    return Heading.of(kind, request_id, model, int(time.time()))
