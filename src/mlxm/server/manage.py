"""The management routes: for the owner of this server's home, who can read the control token, and for nobody else.

Errors are application/problem+json (RFC 9457), with the same fields as everywhere and the hint apart.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Any

import msgspec
from litestar import Request, Router, delete, get, post
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from litestar.params import FromPath
from litestar.response import Response

from mlxm.errors import InvalidRequest, MlxmError, NotAuthenticated, Unavailable
from mlxm.server.body import read_json_body
from mlxm.server.errors import encode_problem, error_headers
from mlxm.server.manage_pool import pool_routes
from mlxm.server.request_id import request_id_of
from mlxm.server.services import Services

if TYPE_CHECKING:
    from mlxm.downloads import Downloads

PREFIX = "/manage"
PROBLEM = "application/problem+json"
_JSON = "application/json"


class StartDownload(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to fetch."""

    name: str
    revision: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


def manage_router(services: Services) -> Router:
    """Every management route."""

    def check_token(connection: ASGIConnection[Any, Any, Any, Any], _handler: BaseRouteHandler) -> None:
        """Let in who knows the token; the comparison takes as long for every wrong one."""
        given = connection.headers.get("authorization", "").removeprefix("Bearer ")
        known = services.control_token
        if known is None or not hmac.compare_digest(given.encode(), known.encode()):
            raise NotAuthenticated(
                "Management needs this server's control token.",
                hint="Commands of the same user with the same MLXM_HOME find it by themselves.",
            )

    return Router(
        path=PREFIX,
        route_handlers=[*_download_routes(services), *pool_routes(services)],
        guards=[check_token],
        exception_handlers={MlxmError: answer_problem},
    )


def _download_routes(services: Services) -> list[Any]:
    async def open_downloads() -> Downloads:
        if services.downloads is None:
            raise Unavailable("This server fetches no models.")
        return await services.downloads()

    @get("/downloads")
    async def list_downloads() -> Response[bytes]:
        return _json((await open_downloads()).list())

    @post("/downloads")
    async def start_download(request: Request[Any, Any, Any]) -> Response[bytes]:
        order = _decode(await read_json_body(request, services.limits))
        downloads = await open_downloads()
        running = {progress.id for progress in downloads.list() if not progress.is_over}
        job = downloads.start(order.name, order.revision, include=order.include, exclude=order.exclude)
        return _json(job.progress, 200 if job.id in running else 201)

    @get("/downloads/{job_id:str}")
    async def show_download(job_id: FromPath[str]) -> Response[bytes]:
        return _json((await open_downloads()).get(job_id).progress)

    @delete("/downloads/{job_id:str}", status_code=200)
    async def cancel_download(job_id: FromPath[str]) -> Response[bytes]:
        return _json(await (await open_downloads()).cancel(job_id))

    @post("/downloads/{job_id:str}", status_code=200)
    async def resume_download(job_id: FromPath[str]) -> Response[bytes]:
        return _json((await open_downloads()).resume(job_id).progress)

    return [list_downloads, start_download, show_download, cancel_download, resume_download]


def answer_problem(request: Request[Any, Any, Any], error: MlxmError) -> Response[bytes]:
    """A failure as problem details."""
    status, body = encode_problem(error, request_id_of(request.scope))
    return Response(body, media_type=PROBLEM, status_code=status, headers=error_headers(error))


def _decode(body: bytes) -> StartDownload:
    try:
        return msgspec.json.decode(body, type=StartDownload)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"The body is not understood: {error}.", hint='Send {"name": "owner/model"}.') from error


def _json(value: Any, status: int = 200) -> Response[bytes]:
    return Response(msgspec.json.encode(value), media_type=_JSON, status_code=status)
