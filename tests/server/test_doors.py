import asyncio

import pytest

from mlxm.server.doors import Doors, HostRefused, OriginRefused
from mlxm.testing.backends import EchoBackend
from tests.server.harness import RawClient, Running, chat_body, serving

HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]", "mac.local"})


def check(*headers: tuple[bytes, bytes], origins: frozenset[str] = frozenset()) -> list[tuple[bytes, bytes]]:
    """Ask the doors."""
    return Doors(hosts=HOSTS, origins=origins).check(headers)


@pytest.mark.parametrize(
    "host", [b"localhost", b"LOCALHOST:80", b"127.0.0.1:6596", b"[::1]:6596", b"[::1]", b"mac.local:1"]
)
def test_own_names_are_let_in(host: bytes) -> None:
    """In any case, with any port: a tunnel may have another one."""
    assert check((b"host", host)) == []


@pytest.mark.parametrize(
    "host",
    [
        b"evil.com",
        b"127x0x0x1",
        b"localhost.evil.com",
        b"localhost.",
        b"evil.com:localhost",
        b"localhost:",
        b"localhost:123456",
        b"user@localhost",
        b"localhost/x",
        b"localhost, localhost",
        b"::1",
        b"[::1",
        b"",
        b" localhost",
        b"\xff",
    ],
)
def test_other_names_are_refused(host: bytes) -> None:
    """Nothing that only begins or ends like a name of ours."""
    with pytest.raises(HostRefused):
        check((b"host", host))


@pytest.mark.parametrize("headers", [(), ((b"host", b"localhost"), (b"host", b"localhost"))])
def test_there_is_exactly_one_host(headers: tuple[tuple[bytes, bytes], ...]) -> None:
    """None, or two of them, is how filters are fooled; a forwarded name counts for nothing."""
    with pytest.raises(HostRefused):
        check(*headers, (b"x-forwarded-host", b"localhost"))


@pytest.mark.parametrize("origin", [b"http://localhost:6596", b"https://localhost:6596", b"HTTP://LOCALHOST:6596"])
def test_own_pages_are_let_in(origin: bytes) -> None:
    """Also behind a proxy that speaks TLS."""
    assert check((b"host", b"localhost:6596"), (b"origin", origin)) == []


@pytest.mark.parametrize(
    "origin", [b"http://evil.com", b"null", b"http://localhost:3000", b"http://localhost", b"file://", b"", b"\xff"]
)
def test_pages_of_others_are_refused(origin: bytes) -> None:
    """Another port is another site."""
    with pytest.raises(OriginRefused):
        check((b"host", b"localhost:6596"), (b"origin", origin))


def test_a_listed_origin_is_told_that_it_may() -> None:
    """Its name comes back, and never a star."""
    headers = dict(
        check((b"host", b"localhost"), (b"origin", b"http://app:3000"), origins=frozenset({"http://app:3000"}))
    )
    assert headers[b"access-control-allow-origin"] == b"http://app:3000"
    assert headers[b"vary"] == b"origin"


async def ask(server: Running, *lines: str) -> bytes:
    """A GET by hand; the head of its answer."""
    async with RawClient.connected(server.port) as client:
        await client.send("\r\n".join(["GET /health HTTP/1.1", *lines, "", ""]).encode())
        return await client.read_until(b"\r\n\r\n")


@pytest.mark.parametrize("lines", [("Host: evil.com",), ("Host: localhost", "Host: localhost")])
def test_the_name_is_looked_at_on_every_route(lines: tuple[str, ...]) -> None:
    """Probes too: they would tell a page that there is a server."""

    async def scenario() -> None:
        async with serving(EchoBackend()) as server:
            head = await ask(server, *lines)
            assert head.startswith((b"HTTP/1.1 421 ", b"HTTP/1.1 400 "))
            await server.assert_answers()

    asyncio.run(scenario())


def test_a_page_may_ask_only_when_it_is_listed() -> None:
    """The browser's question is answered, and so is what follows it; an answer in error is readable too."""

    async def scenario() -> None:
        doors = Doors(origins=frozenset({"http://app:3000"}))
        async with serving(EchoBackend(), doors=doors) as server:
            page = {"origin": "http://app:3000"}
            asked = await server.http.options(
                "/v1/chat/completions", headers={**page, "access-control-request-method": "POST"}
            )
            assert asked.status_code == 204
            for name in ("content-type", "anthropic-version"):
                assert name in asked.headers["access-control-allow-headers"]
            assert "DELETE" in asked.headers["access-control-allow-methods"]
            for body, status in [(chat_body(), 200), ({}, 400)]:
                response = await server.http.post("/v1/chat/completions", json=body, headers=page)
                assert response.status_code == status
                assert response.headers["access-control-allow-origin"] == "http://app:3000"
            foreign = await server.http.options("/v1/chat/completions", headers={"origin": "http://evil.com"})
            assert (foreign.status_code, foreign.json()["error"]["code"]) == (403, "origin_refused")
            assert "access-control-allow-origin" not in foreign.headers

    asyncio.run(scenario())
