"""The application: an explicit table of routes, and errors in one shape."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from litestar import Litestar, Request, get
from litestar.exceptions import HTTPException
from litestar.handlers import HTTPRouteHandler
from litestar.plugins import PluginProtocol
from litestar.plugins.core import MsgspecDIPlugin
from litestar.response import Response
from litestar.types import ControllerRouterHandler

from mlxm import __version__
from mlxm.errors import MlxmError
from mlxm.server.anthropic import anthropic_routes
from mlxm.server.errors import encode_error, error_headers, from_http, report_unexpected, status_of
from mlxm.server.guard import Guard
from mlxm.server.manage import manage_router
from mlxm.server.models import model_routes
from mlxm.server.openai import openai_routes
from mlxm.server.request_id import request_id_of
from mlxm.server.responses import responses_routes
from mlxm.server.services import Services


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """The server is alive."""

    status: Literal["ok"] = "ok"
    version: str = __version__


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a request would be served, and if not, why."""

    status: Literal["ready", "starting", "draining"]
    reason: str | None = None


class _LeanLitestar(Litestar):
    """Litestar with nothing but msgspec: loading what translates pydantic models and attrs classes costs 0.1 s."""

    __slots__ = ()

    @staticmethod
    def _get_default_plugins(plugins: list[PluginProtocol]) -> list[PluginProtocol]:
        return [*plugins, MsgspecDIPlugin()]


def create_app(services: Services) -> Guard:
    """The ASGI application in front of `services`."""
    routes: list[ControllerRouterHandler] = [
        health_route(),
        ready_route(services),
        openapi_route(),
        *openai_routes(services),
        *anthropic_routes(services),
        *responses_routes(services),
        *model_routes(services),
        manage_router(services),
    ]

    def answer_unexpected(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
        return _answer_error(request, report_unexpected(error, request_id_of(request.scope), services.log))

    litestar = _LeanLitestar(
        route_handlers=routes,
        exception_handlers={MlxmError: _answer_error, HTTPException: _answer_http_error, Exception: answer_unexpected},
        openapi_config=None,
        logging_config=None,
        request_max_body_size=None,  # bodies are bounded where they are read
    )
    return Guard(litestar, services.live, services.log, services.doors)


def health_route() -> HTTPRouteHandler:
    """`GET /health`: alive, whatever else is wrong."""

    @get("/health")
    async def health() -> Response[bytes]:
        return _json(Health())

    return health


def ready_route(services: Services) -> HTTPRouteHandler:
    """`GET /ready`: 200 only when a request would be served now."""

    @get("/ready")
    async def ready() -> Response[bytes]:
        if services.live.is_draining:
            return _json(Readiness(status="draining", reason="The server is shutting down."), 503)
        if (reason := services.ready()) is not None:
            return _json(Readiness(status="starting", reason=reason), 503)
        return _json(Readiness(status="ready"))

    return ready


def openapi_route() -> HTTPRouteHandler:
    """`GET /openapi.json`: what the routes for text take and answer."""

    @get("/openapi.json")
    async def openapi() -> Response[bytes]:
        from mlxm.server.openapi import openapi_document  # noqa: PLC0415  # few ever ask for it

        return Response(openapi_document(), media_type="application/json")

    return openapi


def _json(content: msgspec.Struct, status: int = 200) -> Response[bytes]:
    return Response(msgspec.json.encode(content), media_type="application/json", status_code=status)


def _answer_error(request: Request[Any, Any, Any], error: MlxmError) -> Response[bytes]:
    return Response(
        encode_error(error, request_id_of(request.scope)),
        media_type="application/json",
        status_code=status_of(error),
        headers=error_headers(error),
    )


def _answer_http_error(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    response = _answer_error(
        request, from_http(error, request.method, request.url.path, request.app.route_handler_method_map)
    )
    allow = error.headers.get("allow") if error.headers is not None else None
    if allow is not None:
        response.headers["allow"] = allow
    return response
