"""The description of the text routes for programs, made out of the very structs that requests are read into.

It is built when it is first asked for: nobody needs it to start a server.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import msgspec

from mlxm import __version__
from mlxm.server import anthropic, openai, responses
from mlxm.server.errors import ErrorBody
from mlxm.server.models import DETOKENIZE, MODELS, TOKENIZE
from mlxm.wire.anthropic_messages import CountTokensRequest, MessagesRequest
from mlxm.wire.anthropic_messages_answers import Message, TokenCount
from mlxm.wire.openai_chat import ChatCompletionRequest
from mlxm.wire.openai_chat_answers import ChatCompletion
from mlxm.wire.openai_completions import TextCompletionRequest
from mlxm.wire.openai_completions_answers import Completion
from mlxm.wire.openai_models import (
    Detokenized,
    DetokenizeRequest,
    Model,
    ModelList,
    Tokenized,
    TokenizeRequest,
)
from mlxm.wire.openai_responses import ResponsesRequest
from mlxm.wire.openai_responses_answers import Response

_POSTS: Final[dict[str, tuple[type, type]]] = {
    openai.CHAT_COMPLETIONS: (ChatCompletionRequest, ChatCompletion),
    openai.COMPLETIONS: (TextCompletionRequest, Completion),
    openai.BATCH_CHAT_COMPLETIONS: (ChatCompletionRequest, ChatCompletion),
    openai.BATCH_COMPLETIONS: (TextCompletionRequest, Completion),
    anthropic.MESSAGES: (MessagesRequest, Message),
    anthropic.COUNT_TOKENS: (CountTokensRequest, TokenCount),
    responses.RESPONSES: (ResponsesRequest, Response),
    **dict.fromkeys(TOKENIZE, (TokenizeRequest, Tokenized)),
    **dict.fromkeys(DETOKENIZE, (DetokenizeRequest, Detokenized)),
}
_STREAMED: Final = {path for path in _POSTS if path.endswith(("completions", "messages", "responses"))}
_JSON: Final = "application/json"


@cache
def openapi_document() -> bytes:
    """The description, as OpenAPI 3.1 in JSON."""
    types = (*{kind for pair in _POSTS.values() for kind in pair}, Model, ModelList, ErrorBody)
    refs, schemas = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    ref_of = dict(zip(types, refs, strict=True))
    document = {
        "openapi": "3.1.0",
        "info": {"title": "mlxm", "version": __version__},
        "paths": {**_gets(ref_of), **{path: {"post": _post(path, ref_of)} for path in _POSTS}},
        "components": {"schemas": schemas},
    }
    return msgspec.json.encode(document)


def _gets(ref_of: dict[Any, Any]) -> dict[str, Any]:
    name = {"name": "model_id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    return {
        MODELS: {"get": {"operationId": "list_models", "responses": _responses(ref_of, ModelList)}},
        f"{MODELS}/{{model_id}}": {
            "get": {"operationId": "show_model", "parameters": [name], "responses": _responses(ref_of, Model)}
        },
    }


def _post(path: str, ref_of: dict[Any, Any]) -> dict[str, Any]:
    request, answer = _POSTS[path]
    return {
        "operationId": f"post{path.replace('/', '_')}",
        "requestBody": {"required": True, "content": {_JSON: {"schema": ref_of[request]}}},
        "responses": _responses(ref_of, answer, is_streamed=path in _STREAMED),
    }


def _responses(ref_of: dict[Any, Any], answer: type, *, is_streamed: bool = False) -> dict[str, Any]:
    content: dict[str, Any] = {_JSON: {"schema": ref_of[answer]}}
    if is_streamed:
        content["text/event-stream"] = {}
    return {
        "200": {"description": "The answer.", "content": content},
        "default": {"description": "A failure.", "content": {_JSON: {"schema": ref_of[ErrorBody]}}},
    }
