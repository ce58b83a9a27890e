import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlxm.catalog.hub import HubApi, HubOptions
from mlxm.downloads import DownloadOptions, Downloads
from mlxm.testing.backends import EchoBackend
from mlxm.testing.fake_hub import FakeHub, Mishap
from tests.server.harness import Running, serving

TOKEN = "the token of these tests"
NAME = "mlx-community/tiny-4bit"
PLACE = "/manage/downloads"
BOUND_S = 60.0


@asynccontextmanager
async def managed(hub: FakeHub, cache: Path) -> AsyncIterator[Running]:
    """A server that fetches from `hub`, and a client that has its token."""
    hub.add(NAME, {"config.json": b'{"model_type": "llama"}', "model.safetensors": b"x" * 1000})
    async with HubApi(HubOptions(endpoint=hub.url)) as api:
        downloads = Downloads(api, DownloadOptions(cache=cache, margin_bytes=0))

        async def open_downloads() -> Downloads:
            return downloads

        async with serving(EchoBackend(), control_token=TOKEN, downloads=open_downloads) as server:
            server.http.headers["authorization"] = f"Bearer {TOKEN}"
            yield server
        await downloads.close()


def with_server(cache: Path, scenario: Callable[[FakeHub, Running], Awaitable[None]]) -> None:
    """Run a scenario within bounded time."""

    async def run() -> None:
        with FakeHub() as hub:
            async with asyncio.timeout(BOUND_S), managed(hub, cache) as server:
                await scenario(hub, server)

    asyncio.run(run())


async def until(server: Running, job_id: str, *states: str) -> dict[str, Any]:
    """Ask until a download is in one of some states."""
    while True:
        progress: dict[str, Any] = (await server.http.get(f"{PLACE}/{job_id}")).json()
        if progress["state"] in states:
            return progress
        await asyncio.sleep(0.02)


def check_problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Problem details, under the request's id, with what to do apart from what happened."""
    problem: dict[str, Any] = response.json()
    assert response.status_code == problem["status"] == status
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["error"]["code"] == code
    assert problem["request_id"] == response.headers["x-request-id"]
    assert problem["detail"] == problem["error"]["message"]
    assert problem.keys() >= {"type", "title", "instance", "hint"}
    return problem


def test_download_is_started_joined_and_finished(tmp_path: Path) -> None:
    """The first request makes it, the second finds it under way, and the list has it once."""

    async def scenario(hub: FakeHub, server: Running) -> None:
        release = threading.Event()
        hub.break_with(Mishap(path="*/model.safetensors", method="GET", hold=release))
        assert (await server.http.get(PLACE)).json() == []
        first = await server.http.post(PLACE, json={"name": NAME})
        again = await server.http.post(PLACE, json={"name": NAME, "revision": None, "include": [], "exclude": []})
        assert (first.status_code, again.status_code) == (201, 200)
        assert first.json()["id"] == again.json()["id"]
        release.set()
        done = await until(server, first.json()["id"], "done")
        assert done["path"].startswith(str(tmp_path))
        assert (await server.http.get(PLACE)).json() == [done]

    with_server(tmp_path, scenario)


def test_download_is_cancelled_and_resumed(tmp_path: Path) -> None:
    """By whoever knows its id."""

    async def scenario(hub: FakeHub, server: Running) -> None:
        hub.break_with(Mishap(path="*/model.safetensors", method="GET", hold=threading.Event(), times=None))
        job_id = (await server.http.post(PLACE, json={"name": NAME})).json()["id"]
        await until(server, job_id, "downloading")
        cancelled = await server.http.delete(f"{PLACE}/{job_id}")
        assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
        hub.mend()
        resumed = await server.http.post(f"{PLACE}/{job_id}")
        assert (resumed.status_code, resumed.json()["id"]) == (200, job_id)
        await until(server, job_id, "done")

    with_server(tmp_path, scenario)


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer wrong", "Basic x", "Bearer ünsinn", f"Bearer {TOKEN}x"])
def test_nobody_manages_without_the_token(tmp_path: Path, header: str | None) -> None:
    """Whatever else is sent; what is asked for does not happen."""

    async def scenario(hub: FakeHub, server: Running) -> None:
        del server.http.headers["authorization"]
        headers = {} if header is None else {b"authorization": header.encode()}
        for method, path in (("GET", PLACE), ("POST", PLACE), ("DELETE", f"{PLACE}/x"), ("POST", f"{PLACE}/x")):
            content = b'{"name": "a/b"}' if method == "POST" else None
            response = await server.http.request(
                method, path, headers={b"content-type": b"application/json", **headers}, content=content
            )
            check_problem(response, 401, "not_authenticated")
        assert hub.requests == []

    with_server(tmp_path, scenario)


def test_server_without_a_token_is_managed_by_nobody() -> None:
    """Whatever they say."""

    async def scenario() -> None:
        async with serving(EchoBackend()) as server:
            response = await server.http.get(PLACE, headers={"authorization": "Bearer None"})
            check_problem(response, 401, "not_authenticated")

    asyncio.run(scenario())


def test_server_that_fetches_nothing_says_so() -> None:
    """A scripted one, for example."""

    async def scenario() -> None:
        async with serving(EchoBackend(), control_token=TOKEN) as server:
            response = await server.http.get(PLACE, headers={"authorization": f"Bearer {TOKEN}"})
            check_problem(response, 503, "unavailable")
            assert int(response.headers["retry-after"]) >= 1

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 422, "invalid_request"),
        (b"[]", 422, "invalid_request"),
        (b"{}", 422, "invalid_request"),
        (b'{"name": 7}', 422, "invalid_request"),
        (b'{"name": "a/b", "nmae": "c"}', 422, "invalid_request"),
        (b'{"name": "../../etc"}', 422, "invalid_request"),
        (b'{"name": "a/b", "include": ["*.py"]}', 422, "invalid_request"),
        (b'{"name": "\xff"}', 422, "invalid_request"),
        (b'{"x": ' + b"[" * 200_000, 422, "invalid_request"),
    ],
)
def test_order_that_is_none_is_a_problem(tmp_path: Path, body: bytes, status: int, code: str) -> None:
    """With the reason, and a hint where there is one."""

    async def scenario(_hub: FakeHub, server: Running) -> None:
        response = await server.http.post(PLACE, content=body, headers={"content-type": "application/json"})
        check_problem(response, status, code)
        assert (await server.http.get(PLACE)).json() == []

    with_server(tmp_path, scenario)


def test_unknown_download_is_a_problem(tmp_path: Path) -> None:
    """For every verb."""

    async def scenario(_hub: FakeHub, server: Running) -> None:
        for method in ("GET", "DELETE", "POST"):
            problem = check_problem(await server.http.request(method, f"{PLACE}/dl_none"), 404, "not_found")
            assert problem["hint"] == "Start it with the model's name."

    with_server(tmp_path, scenario)
