"""Errors as HTTP: one status per kind, one body that the clients of every dialect understand.

The server's one blind except lives here: what nobody expected is logged with its traceback under the request's id, and
the client reads a fixed sentence instead of it.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Iterable
from difflib import get_close_matches
from http import HTTPStatus
from typing import Literal, TypeVar

import msgspec
from litestar.exceptions import HTTPException

from mlxm.errors import (
    Cancelled,
    Conflict,
    DiskFull,
    Forbidden,
    InternalError,
    InvalidRequest,
    MlxmError,
    NotAuthenticated,
    NotFound,
    Offline,
    Overloaded,
    TimedOut,
    Unavailable,
)
from mlxm.server.doors import HostRefused
from mlxm.server.log import Log

T = TypeVar("T")

CLIENT_GONE = 499
_DEFAULT_RETRY_AFTER_S = 1.0


class MethodNotAllowed(InvalidRequest):
    """The path is served, with other methods."""

    code = "method_not_allowed"


class BodyTooLarge(InvalidRequest):
    """The body is over the limit."""

    code = "body_too_large"


class MediaTypeRefused(InvalidRequest):
    """The body is not declared as plain JSON."""

    code = "unsupported_media_type"


class BodyTooSlow(TimedOut):
    """The body did not arrive in time."""

    code = "body_timeout"


# The dialects share these names, so that each SDK finds the class it knows; the first kind that fits counts.
KINDS: tuple[tuple[type[MlxmError], int, str], ...] = (
    (MethodNotAllowed, 405, "invalid_request_error"),
    (BodyTooLarge, 413, "request_too_large"),
    (MediaTypeRefused, 415, "invalid_request_error"),
    (HostRefused, 421, "invalid_request_error"),
    (InvalidRequest, 400, "invalid_request_error"),
    (NotAuthenticated, 401, "authentication_error"),
    (Forbidden, 403, "permission_error"),
    (NotFound, 404, "not_found_error"),
    (Conflict, 409, "invalid_request_error"),
    (Overloaded, 429, "rate_limit_error"),
    (Unavailable, 503, "overloaded_error"),
    (Offline, 503, "api_error"),
    (BodyTooSlow, 408, "timeout_error"),
    (TimedOut, 504, "timeout_error"),
    (Cancelled, CLIENT_GONE, "invalid_request_error"),
    (DiskFull, 507, "api_error"),
    (MlxmError, 500, "api_error"),
)


class ErrorDetail(msgspec.Struct, frozen=True, kw_only=True):
    """What SDKs read."""

    type: str
    message: str
    code: str
    param: str | None


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """The one body: for OpenAI's SDKs, Anthropic's, and readers of RFC 9457."""

    type: Literal["error"] = "error"
    error: ErrorDetail
    request_id: str
    title: str
    status: int
    detail: str
    instance: str


class Problem(ErrorBody, frozen=True, kw_only=True):
    """The body of the management routes: problem details, with what to do apart from what happened."""

    hint: str | None


def status_of(error: MlxmError) -> int:
    """The HTTP status for a failure."""
    return _kind_of(error)[0]


def encode_error(error: MlxmError, request_id: str) -> bytes:
    """The body for a failure."""
    status, kind = _kind_of(error)
    message = error.message if error.hint is None else f"{error.message} {error.hint}"
    return msgspec.json.encode(
        ErrorBody(
            error=ErrorDetail(type=kind, message=message, code=error.code, param=error.param),
            request_id=request_id,
            title=_title(error),
            status=status,
            detail=message,
            instance=f"/requests/{request_id}",
        )
    )


def encode_problem(error: MlxmError, request_id: str) -> tuple[int, bytes]:
    """The status and the body for a failure of a management route, where what cannot be understood is 422."""
    known, kind = _kind_of(error)
    status = HTTPStatus.UNPROCESSABLE_ENTITY.value if known == HTTPStatus.BAD_REQUEST else known
    body = Problem(
        error=ErrorDetail(type=kind, message=error.message, code=error.code, param=error.param),
        request_id=request_id,
        title=_title(error),
        status=status,
        detail=error.message,
        instance=f"/requests/{request_id}",
        hint=error.hint,
    )
    return status, msgspec.json.encode(body)


def error_headers(error: MlxmError) -> dict[str, str]:
    """What tells a client whether and when to try again."""
    status = status_of(error)
    if status in (429, 503):
        wait_s = _DEFAULT_RETRY_AFTER_S if error.retry_after_s is None else error.retry_after_s
        return {"retry-after": str(max(1, math.ceil(wait_s)))}
    return {"x-should-retry": "false"} if status in (409, 500, 504, 507) else {}


def from_http(error: HTTPException, method: str, path: str, served_paths: Iterable[str]) -> MlxmError:
    """What the framework raises on its own, in our words."""
    if error.status_code == HTTPStatus.NOT_FOUND:
        near = get_close_matches(path, list(served_paths), n=1, cutoff=0.5)
        return NotFound(f"There is nothing at {path}.", hint=f"Did you mean {near[0]}?" if near else None)
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return MethodNotAllowed(f"{path} does not take {method}.")
    if error.status_code < HTTPStatus.INTERNAL_SERVER_ERROR:
        return InvalidRequest("The request could not be read.")
    return InternalError("The server could not handle the request.")


def report_unexpected(error: BaseException, request_id: str, log: Log) -> InternalError:
    """Log a failure that nobody foresaw; the client learns only where to look."""
    log.error("unexpected_error", error=error, request_id=request_id)
    return InternalError("Something went wrong inside mlxm.", hint=f"The server's log has it under {request_id}.")


async def guarded(work: Awaitable[T], request_id: str, log: Log) -> T:
    """The server's boundary: await `work`, and let nothing but an MlxmError out of it."""
    try:
        return await work
    except MlxmError:
        raise
    except Exception as error:  # one of the three boundaries of the house
        raise report_unexpected(error, request_id, log) from error


def _kind_of(error: MlxmError) -> tuple[int, str]:
    return next((status, kind) for cls, status, kind in KINDS if isinstance(error, cls))


def _title(error: MlxmError) -> str:
    return error.code.replace("_", " ").capitalize()
