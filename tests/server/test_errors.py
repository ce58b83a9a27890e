import asyncio
import json

import pytest
from litestar.exceptions import ClientException, HTTPException

from mlxm import errors
from mlxm.errors import InternalError, MlxmError, ModelNotFound, Overloaded
from mlxm.server.errors import encode_error, error_headers, from_http, guarded, status_of
from tests.server.harness import KeptLines

STATUS_BY_CODE = {
    "invalid_request": 400,
    "unsupported_parameter": 400,
    "context_length_exceeded": 400,
    "not_found": 404,
    "model_not_found": 404,
    "not_authenticated": 401,
    "forbidden": 403,
    "conflict": 409,
    "already_running": 409,
    "port_in_use": 409,
    "unavailable": 503,
    "overloaded": 429,
    "draining": 503,
    "out_of_memory": 503,
    "worker_died": 503,
    "server_unreachable": 503,
    "timed_out": 504,
    "offline": 503,
    "cancelled": 499,
    "model_broken": 500,
    "config_invalid": 500,
    "open_without_key": 500,
    "store_failed": 500,
    "store_read_only": 500,
    "disk_full": 507,
    "secret_unreadable": 500,
    "protocol_mismatch": 500,
    "internal_error": 500,
}


def test_every_error_has_its_status() -> None:
    """The whole tree is mapped; a new error asks for a line here."""
    assert {code: status_of(kind("m")) for code, kind in errors.BY_CODE.items()} == STATUS_BY_CODE


def test_body_serves_every_reader() -> None:
    """What OpenAI's SDKs, Anthropic's and readers of RFC 9457 look for is all there."""
    body = json.loads(encode_error(ModelNotFound("No model x.", hint="Try y.", param="model"), "req_1"))
    assert body == {
        "type": "error",
        "error": {
            "type": "not_found_error",
            "message": "No model x. Try y.",
            "code": "model_not_found",
            "param": "model",
        },
        "request_id": "req_1",
        "title": "Model not found",
        "status": 404,
        "detail": "No model x. Try y.",
        "instance": "/requests/req_1",
    }


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Overloaded("m"), {"retry-after": "1"}),
        (Overloaded("m", retry_after_s=0), {"retry-after": "1"}),
        (Overloaded("m", retry_after_s=2.1), {"retry-after": "3"}),
        (InternalError("m"), {"x-should-retry": "false"}),
        (ModelNotFound("m"), {}),
    ],
)
def test_clients_are_told_whether_to_try_again(error: MlxmError, expected: dict[str, str]) -> None:
    """What passes says when; what stays says that repeating is useless."""
    assert error_headers(error) == expected


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (HTTPException(status_code=404), "not_found"),
        (HTTPException(status_code=405), "method_not_allowed"),
        (ClientException("Invalid thing"), "invalid_request"),
        (HTTPException(status_code=500), "internal_error"),
    ],
)
def test_the_frameworks_errors_become_ours(error: HTTPException, code: str) -> None:
    """Its own words, which may quote the request or the code, are left behind."""
    ours = from_http(error, "GET", "/x", ["/health"])
    assert ours.code == code
    assert "Invalid thing" not in ours.message


def test_boundary_lets_our_errors_through() -> None:
    """What is an MlxmError already is not touched and not logged."""
    log = KeptLines()

    async def fail() -> None:
        raise ModelNotFound("m")

    with pytest.raises(ModelNotFound):
        asyncio.run(guarded(fail(), "req_1", log))
    assert log.lines == []


def test_boundary_lets_cancelling_through() -> None:
    """A cancelled task stays cancelled."""

    async def fail() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(guarded(fail(), "req_1", KeptLines()))


def test_boundary_catches_all_else() -> None:
    """Anything else is logged under the id, and becomes an InternalError that names it."""
    log = KeptLines()

    async def fail() -> None:
        raise KeyError("secret")

    with pytest.raises(InternalError) as caught:
        asyncio.run(guarded(fail(), "req_1", log))
    assert "secret" not in caught.value.message
    assert caught.value.hint is not None
    assert "req_1" in caught.value.hint
    assert [line["request_id"] for line in log.lines] == ["req_1"]
