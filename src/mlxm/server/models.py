"""The models by name, and their tokens: `/v1/models`, `/tokenize` and `/detokenize`."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath
from litestar.response import Response

from mlxm.server.body import read_json_body
from mlxm.server.exchange import check_ready
from mlxm.server.request_id import request_id_of
from mlxm.server.services import Services
from mlxm.types import Models
from mlxm.wire import anthropic_models, openai_models
from mlxm.wire.anthropic_models import VERSION_HEADER, read_page
from mlxm.wire.openai_models import Detokenized, Tokenized

MODELS = "/v1/models"
TOKENIZE = ("/tokenize", "/v1/tokenize")
DETOKENIZE = ("/detokenize", "/v1/detokenize")
_JSON = "application/json"


def model_routes(services: Services) -> list[HTTPRouteHandler]:
    """Every route about models; none for a backend that does not know which it has."""
    if services.models is None:
        return []
    return [*_list_routes(services.models), *_token_routes(services, services.models)]


def _list_routes(models: Models) -> list[HTTPRouteHandler]:
    @get(MODELS)
    async def list_models(request: Request[Any, Any, Any]) -> Response[bytes]:
        found = await models.list_models()
        if VERSION_HEADER in request.headers:
            return Response(read_page(dict(request.query_params)).encode(found), media_type=_JSON)
        return Response(openai_models.model_list(found), media_type=_JSON)

    @get(f"{MODELS}/{{model_id:path}}")
    async def show_model(request: Request[Any, Any, Any], model_id: FromPath[str]) -> Response[bytes]:
        info = await models.find_model(model_id.removeprefix("/"))
        write = anthropic_models.model if VERSION_HEADER in request.headers else openai_models.model
        return Response(write(info), media_type=_JSON)

    return [list_models, show_model]


def _token_routes(services: Services, models: Models) -> list[HTTPRouteHandler]:
    @post(list(TOKENIZE), status_code=200)
    async def tokenize(request: Request[Any, Any, Any]) -> Response[bytes]:
        asked = openai_models.read_tokenize(await read_json_body(request, services.limits))
        neutral = asked.to_request(request_id_of(request.scope))
        check_ready(services)
        encoded = await models.tokenize(neutral, is_bare=asked.is_bare)
        return _json(Tokenized(count=len(encoded.ids), max_model_len=encoded.context_length, tokens=encoded.ids))

    @post(list(DETOKENIZE), status_code=200)
    async def detokenize(request: Request[Any, Any, Any]) -> Response[bytes]:
        asked = openai_models.read_detokenize(await read_json_body(request, services.limits))
        check_ready(services)
        return _json(Detokenized(prompt=await models.detokenize(asked.model, asked.tokens)))

    return [tokenize, detokenize]


def _json(content: msgspec.Struct) -> Response[bytes]:
    return Response(msgspec.json.encode(content), media_type=_JSON)
