import asyncio
import gzip
import json
from random import Random
from typing import Any

import httpx
import pytest

from mlxm.server.limits import Limits
from mlxm.testing.backends import EchoBackend
from tests.server.harness import CHAT, RawClient, Running, chat_body, chat_bytes, post_bytes, serving

GOOD = json.dumps(chat_body()).encode()
CHUNKED_HEAD = (
    f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
).encode()


def check_refusal(status: int, headers: Any, body: bytes) -> None:
    """One shape for every refusal, under one id."""
    refusal = json.loads(body)
    assert refusal["type"] == "error"
    assert refusal.keys() == {"type", "error", "request_id", "title", "status", "detail", "instance"}
    assert refusal["error"].keys() == {"type", "message", "code", "param"}
    assert refusal["error"]["message"] == refusal["detail"]
    assert refusal["status"] == status
    assert refusal["request_id"] == headers["x-request-id"] == headers["request-id"]
    assert refusal["instance"].endswith(refusal["request_id"])
    assert headers["content-type"] == "application/json"


def check_response(response: httpx.Response, status: int) -> None:
    """A refusal as httpx sees it."""
    assert response.status_code == status, response.text
    check_refusal(status, response.headers, response.content)


async def ask_raw(server: Running, request: bytes, *, half_close: bool = False) -> int:
    """Send bytes as they are, and check the refusal; its status."""
    async with RawClient.connected(server.port) as client:
        await client.send(request)
        if half_close:
            client.half_close()
        head, _, body = (await client.read_until(b"}")).partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        while len(body) < int(headers["content-length"]):
            body += await client.read_until(b"}")
        status = int(first.split()[1])
        check_refusal(status, headers, body)
        return status


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"nonsense", 400),
        (b"[]", 400),
        (b"null", 400),
        (b"\x00", 400),
        (b"\xef\xbb\xbf" + GOOD, 400),
        (GOOD.replace(b"hello", b"\xff"), 400),
        (GOOD.replace(b"hello", b"\xc0\x80"), 400),
        (GOOD.replace(b"hello", rb"\ud800"), 400),
        (GOOD.replace(b"hello", rb"\ud800\u0041"), 400),
        (GOOD[:-1] + b', "x": ' + b"[" * 5_000 + b"]" * 5_000 + b"}", 400),
        (GOOD[:-1] + b', "metadata": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}", 400),
        (GOOD[:-1] + b', "seed": ' + b"9" * 100_000 + b"}", 400),
        (GOOD[:-1] + b', "temperature": 1e999}', 400),
        (GOOD[:-1] + b', "max_tokens": "12"}', 400),
        (GOOD[:-1] + b', "n": 0}', 400),
        (b"x" * 2_000_000, 413),
    ],
)
def test_bad_bodies(body: bytes, status: int) -> None:
    """Whatever is in the body, the answer is a refusal in the one shape, and the next request is served."""

    async def scenario() -> None:
        async with serving(EchoBackend(), limits=Limits(max_body_bytes=1_900_000)) as server:
            response = await server.http.post(CHAT, content=body, headers={"content-type": "application/json"})
            check_response(response, status)
            assert (await server.chat()).status_code == 200

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("request_bytes", "half_close", "status"),
    [
        (post_bytes(GOOD[:20], length=len(GOOD)), True, 400),
        (CHUNKED_HEAD + b"zz\r\nabc\r\n", True, 400),
        (CHUNKED_HEAD + b"zz\r\nabc\r\n", False, 400),
        (CHUNKED_HEAD + b"ffffffffffffffff\r\nabc\r\n", True, 400),
        (CHUNKED_HEAD + b"5\r\n{", True, 400),
        (CHUNKED_HEAD + b"10000\r\n" + b"x" * 65536 + b"\r\n", False, 413),
        (post_bytes(b"", length=10**18), False, 413),
        (post_bytes(b"", "Expect: 100-continue", length=10**6), False, 413),
        (post_bytes(GOOD, path="/nowhere"), False, 404),
    ],
)
def test_bad_framing(request_bytes: bytes, half_close: bool, status: int) -> None:  # noqa: FBT001  # named by pytest
    """Bodies that are cut, badly chunked, or announced too large."""

    async def scenario() -> None:
        async with serving(EchoBackend(), limits=Limits(max_body_bytes=50_000)) as server:
            assert await ask_raw(server, request_bytes, half_close=half_close) == status
            assert (await server.chat()).status_code == 200

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "text/plain"},
        {"content-type": "text/plain; application/json"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "multipart/form-data; boundary=x"},
        {"content-type": "application/json; charset=latin-1"},
        {"content-type": "application/jsonx"},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
)
def test_only_plain_json_is_taken(headers: dict[str, str]) -> None:
    """What a web page may post without asking first is refused, and so is what would grow when unpacked."""

    async def scenario() -> None:
        async with serving(EchoBackend()) as server:
            body = gzip.compress(GOOD) if "content-encoding" in headers else GOOD
            check_response(await server.http.post(CHAT, content=body, headers=headers), 415)
            assert (await server.chat()).status_code == 200

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "Application/JSON", "application/json; charset=utf-8", 'application/json;charset="UTF-8"'],
)
def test_json_is_taken_in_every_spelling(content_type: str) -> None:
    """Case, spaces and a charset of UTF-8 make no difference."""

    async def scenario() -> None:
        async with serving(EchoBackend()) as server:
            response = await server.http.post(CHAT, content=GOOD, headers={"content-type": content_type})
            assert response.status_code == 200

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/nowhere", 404),
        ("POST", "/v1/chat/completions/x", 404),
        ("GET", "/%ff", 404),
        ("GET", "/%00", 404),
        ("GET", "/..%2f..%2fetc/passwd", 404),
        ("GET", "/a?x=%ff&x", 404),
        ("GET", "/" + "x" * 5000, 404),
        ("GET", CHAT, 405),
        ("PUT", CHAT, 405),
        ("DELETE", "/health", 405),
        ("POST", "/ready", 405),
        ("BREW", "/health", 405),
    ],
)
def test_unknown_routes_and_methods(method: str, path: str, status: int) -> None:
    """The framework's own refusals have the one shape too."""

    async def scenario() -> None:
        async with serving(EchoBackend()) as server:
            request = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".encode()
            assert await ask_raw(server, request) == status
            response = await server.http.request(method, CHAT) if status == 405 and path == CHAT else None
            assert response is None or response.headers["allow"] == "POST, OPTIONS"

    asyncio.run(scenario())


def test_nearest_route_is_named() -> None:
    """A base URL that lacks its /v1 is a common slip."""

    async def scenario() -> None:
        async with serving(EchoBackend()) as server:
            response = await server.http.post("/chat/completions", json=chat_body())
            check_response(response, 404)
            assert "/v1/chat/completions" in response.json()["error"]["message"]

    asyncio.run(scenario())


def test_large_upload_reads_its_refusal() -> None:
    """A client that is still sending when it is refused gets the answer, and not a broken connection."""

    async def scenario() -> None:
        async with serving(EchoBackend()) as server:
            for path, status in [(CHAT, 413), ("/nowhere", 404)]:
                response = await server.http.post(
                    path, content=b"x" * 30_000_000, headers={"content-type": "application/json"}
                )
                check_response(response, status)

    asyncio.run(scenario())


def test_slow_body_is_given_up() -> None:
    """A body that does not arrive in time is answered, and the connection is not held for ever."""

    async def scenario() -> None:
        async with serving(EchoBackend(), limits=Limits(body_timeout_s=0.2)) as server:
            assert await ask_raw(server, post_bytes(GOOD[:5], length=100)) == 408
            assert (await server.chat()).status_code == 200

    asyncio.run(scenario())


def test_many_bad_requests_on_one_connection() -> None:
    """A refusal leaves the connection usable."""

    async def scenario() -> None:
        async with serving(EchoBackend()) as server, RawClient.connected(server.port) as client:
            for _ in range(50):
                await client.send(post_bytes(b"{"))
                assert b"400 Bad Request" in await client.read_until(b'"instance"')
            await client.send(chat_bytes())
            assert b"200 OK" in await client.read_until(b'"usage"')

    asyncio.run(scenario())


def test_bodies_made_of_random_changes() -> None:
    """Bytes flipped, cut and repeated at random: no answer is a server error, and good requests are served between."""

    async def scenario() -> None:
        dice = Random(20)
        async with serving(EchoBackend()) as server:
            for turn in range(400):
                body = bytearray(GOOD)
                for _ in range(dice.randint(1, 4)):
                    at = dice.randrange(len(body))
                    body[at : at + dice.randint(0, 3)] = dice.choice(
                        [b"", b"\xff", b'"', b"{", b"[", b"\\", b"null", b"-1e5", bytes([dice.randrange(256)])]
                    )
                response = await server.http.post(
                    CHAT, content=bytes(body), headers={"content-type": "application/json"}
                )
                assert response.status_code in (200, 400, 404), (bytes(body), response.text)
                if turn % 50 == 0:
                    assert (await server.chat()).status_code == 200

    asyncio.run(scenario())
