"""The management routes of the pool: what is loaded, and orders to load, unload and restart."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from litestar import Request, delete, get, post
from litestar.params import FromPath, FromQuery
from litestar.response import Response
from litestar.response.base import ASGIResponse

from mlxm.errors import Cancelled, InvalidRequest, Unavailable
from mlxm.server.body import read_json_body
from mlxm.server.services import Services
from mlxm.server.stream import TokenStream
from mlxm.wire import sse

if TYPE_CHECKING:
    from mlxm.hub_pool import PoolOrders

_JSON = "application/json"
_ACCEPTED = 202
_MAX_TOKENS = 1 << 30
_MAX_SECONDS = 10 * 366 * 24 * 3600
_NO_BUFFERING = {"cache-control": "no-cache", "x-accel-buffering": "no"}


class LoadOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How to load a model. `ttl_s` 0 lets it stay until others need its memory; `ctx` is how many tokens are to fit.

    `restart` replaces the process of one that is loaded, after what it still runs, or with `now` at once.
    """

    pin: bool = False
    ttl_s: Annotated[float, msgspec.Meta(ge=0, le=_MAX_SECONDS)] | None = None
    ctx: Annotated[int, msgspec.Meta(ge=1, le=_MAX_TOKENS)] | None = None
    restart: bool = False
    now: bool = False


def pool_routes(services: Services) -> list[Any]:
    """Every route under `/manage/pool`."""

    def orders() -> PoolOrders:
        if services.orders is None:
            raise Unavailable("This server loads no models.")
        return services.orders

    @get("/pool")
    async def show_pool() -> Response[bytes]:
        return _json(await orders().status())

    @delete("/pool", status_code=200)
    async def unload_all(now: FromQuery[bool] = False) -> Response[bytes]:  # noqa: FBT002  # as litestar reads it
        await orders().unload_all(now=now)
        return _json(await orders().status())

    @get("/pool/{model:path}")
    async def show_model(model: FromPath[str], watch: FromQuery[bool] = False) -> ASGIResponse:  # noqa: FBT002  # as above
        name = _name_of(model)
        first = await orders().model(name)
        if watch:
            return _watch(services, orders(), name)
        return ASGIResponse(body=msgspec.json.encode(first), media_type=_JSON)

    @post("/pool/{model:path}", status_code=_ACCEPTED)
    async def load_model(model: FromPath[str], request: Request[Any, Any, Any]) -> Response[bytes]:
        order = _decode(await read_json_body(request, services.limits))
        if order.restart:
            return _json(await orders().restart(_name_of(model), now=order.now), _ACCEPTED)
        ttl_s = math.inf if order.ttl_s == 0 else order.ttl_s
        return _json(await orders().load(_name_of(model), pin=order.pin, ttl_s=ttl_s, context=order.ctx), _ACCEPTED)

    @delete("/pool/{model:path}", status_code=200)
    async def unload_model(model: FromPath[str], now: FromQuery[bool] = False) -> Response[bytes]:  # noqa: FBT002  # as above
        await orders().unload(_name_of(model), now=now)
        return _json(await orders().status())

    return [show_pool, unload_all, show_model, load_model, unload_model]


def _watch(services: Services, orders: PoolOrders, name: str) -> ASGIResponse:
    """A server-sent event for every change, until nothing is under way."""

    async def chunks() -> AsyncGenerator[bytes, None]:
        async with aclosing(orders.watch(name)) as rows:
            async for row in rows:
                yield sse.event("model", msgspec.json.encode(row))

    async def finish(_cut_short: Cancelled | None) -> None:
        """Nobody keeps a record of who watched."""

    return TokenStream(
        chunks(),
        media_type=sse.MEDIA_TYPE,
        headers=_NO_BUFFERING,
        send_timeout_s=services.limits.send_timeout_s,
        finish=finish,
    )


def _name_of(path: str) -> str:
    return path.removeprefix("/")


def _decode(body: bytes) -> LoadOrder:
    try:
        return msgspec.json.decode(body, type=LoadOrder)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"The body is not understood: {error}.", hint='Send {} or {"pin": true}.') from error


def _json(value: Any, status: int = 200) -> Response[bytes]:
    return Response(msgspec.json.encode(value), media_type=_JSON, status_code=status)
