import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mlxm.errors import ConfigInvalid, MlxmError, ModelBroken, ModelNotFound
from mlxm.hub_pool import PoolOrders, Wishes
from mlxm.pool.options import LocalModel
from mlxm.testing.backends import EchoBackend
from tests.pool.fakes import MB, FakeLauncher, Stage, limit
from tests.server.harness import Running, serving, until
from tests.server.test_manage import TOKEN, check_problem

PLACE = "/manage/pool"
NAME = "some/model-4bit"
BOUND_S = 30.0


class Names:
    """A router over fakes: every model of the stage, and one alias."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    async def resolve(self, name: str, *, may_be_path: bool = False) -> LocalModel:
        """The model of a name."""
        assert not may_be_path
        target = {"alias": NAME}.get(name, name)
        if target == "broken":
            raise ModelBroken("It is incomplete.")
        if target not in (NAME, "other"):
            raise ModelNotFound(f"There is no model {name!r}.")
        return LocalModel(name=target, folder=Path("/models") / target.replace("/", "-"), context_length=None)


class Managed:
    """A server whose pool is one of fakes."""

    def __init__(self, launcher: FakeLauncher | None = None) -> None:
        self.stage = Stage(launcher=launcher)
        self.stage.model(NAME.replace("/", "-"))
        self.stage.model("other")
        self.told: list[MlxmError] = []
        self.orders = PoolOrders(self.stage.pool, Names(self.stage), self.told.append)  # type: ignore[arg-type]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Running]:
        """With a client that has the token."""
        async with serving(EchoBackend(), control_token=TOKEN, orders=self.orders) as server:
            server.http.headers["authorization"] = f"Bearer {TOKEN}"
            yield server
        await self.orders.close()
        await self.stage.pool.close()


def with_pool(
    scenario: Callable[[Managed, Running], Awaitable[None]], make_launcher: Callable[[], FakeLauncher] = FakeLauncher
) -> None:
    """Run a scenario within bounded time."""

    async def run() -> None:
        managed = Managed(make_launcher())
        async with asyncio.timeout(BOUND_S), managed.running() as server:
            await scenario(managed, server)

    asyncio.run(run())


def test_a_model_is_loaded_shown_and_unloaded() -> None:
    """By any name that people have for it; the answer to an order comes at once."""

    async def scenario(managed: Managed, server: Running) -> None:
        begun = await server.http.post(f"{PLACE}/alias", json={"pin": True, "ttl_s": 60, "ctx": 7})
        assert (begun.status_code, begun.json()["model"], begun.json()["pinned"]) == (202, NAME, True)
        await until(lambda: managed.stage.states() == {NAME: "ready"})
        row = (await server.http.get(f"{PLACE}/{NAME}")).json()
        assert (row["state"], row["reserved_bytes"]) == ("ready", 47 * MB)
        pool = (await server.http.get(PLACE)).json()
        assert (pool["models"][0]["model"], pool["budget_bytes"], pool["others_bytes"]) == (NAME, 100 * MB, 0)
        gone = await server.http.delete(f"{PLACE}/alias")
        assert (gone.status_code, gone.json()["models"], gone.json()["reserved_bytes"]) == (200, [], 0)
        check_problem(await server.http.delete(f"{PLACE}/{NAME}"), 404, "not_found")

    with_pool(scenario)


def test_a_ttl_of_zero_lets_it_stay() -> None:
    """Until others need its memory."""

    async def scenario(managed: Managed, server: Running) -> None:
        await server.http.post(f"{PLACE}/{NAME}", json={"ttl_s": 0})
        await until(lambda: managed.stage.states() == {NAME: "ready"})
        assert (await server.http.get(f"{PLACE}/{NAME}")).json()["expires_s"] is None

    with_pool(scenario)


def test_every_model_goes_at_once_when_that_is_wanted() -> None:
    """Whatever they run."""

    async def scenario(managed: Managed, server: Running) -> None:
        for name in (NAME, "other"):
            await server.http.post(f"{PLACE}/{name}", json={})
        await until(lambda: set(managed.stage.states().values()) == {"ready"})
        model = LocalModel(name="other", folder=Path("/models/other"), context_length=None)
        using = asyncio.create_task(managed.stage.ask(model))
        await until(lambda: bool(managed.stage.worker("other").streams))
        assert (await server.http.delete(f"{PLACE}?now=true")).json()["models"] == []
        with pytest.raises(MlxmError):
            await using

    with_pool(scenario, lambda: FakeLauncher(answers_at_once=False))


def test_a_model_is_restarted() -> None:
    """Also one whose name leads nowhere any more, as long as it is loaded; one that is not loaded is not."""

    async def scenario(managed: Managed, server: Running) -> None:
        await server.http.post(f"{PLACE}/{NAME}", json={})
        await until(lambda: managed.stage.states() == {NAME: "ready"})
        again = await server.http.post(f"{PLACE}/{NAME}", json={"restart": True, "now": True})
        assert (again.status_code, again.json()["model"]) == (202, NAME)
        await until(lambda: len(managed.stage.launcher.workers) == 2)
        check_problem(await server.http.post(f"{PLACE}/gone", json={"restart": True}), 404, "not_found")
        check_problem(await server.http.post(f"{PLACE}/gone", json={}), 404, "model_not_found")
        check_problem(await server.http.post(f"{PLACE}/broken", json={}), 500, "model_broken")

    with_pool(scenario)


def test_a_load_can_be_watched() -> None:
    """An event for every change, the last of which tells how it ended."""

    async def scenario(managed: Managed, server: Running) -> None:
        await server.http.post(f"{PLACE}/{NAME}", json={})
        await until(lambda: bool(managed.stage.launcher.workers))
        asyncio.get_running_loop().call_later(0.1, lambda: managed.stage.worker(NAME).let_load())
        watched = await server.http.get(f"{PLACE}/{NAME}?watch=true")
        assert watched.headers["content-type"].startswith("text/event-stream")
        rows = [
            json.loads(line.removeprefix("data: ")) for line in watched.text.splitlines() if line.startswith("data")
        ]
        assert [rows[0]["state"], rows[-1]["state"]] == ["loading", "ready"]
        check_problem(await server.http.get(f"{PLACE}/nobody?watch=true"), 404, "not_found")

    with_pool(scenario, lambda: FakeLauncher(loads_at_once=False))


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b'{"pins": true}', b'{"ttl_s": -1}', b'{"ctx": 0}', b'{"ctx": 1.5}', b'{"ttl_s": 1e99}']
)
def test_an_order_that_is_none_is_a_problem(body: bytes) -> None:
    """With the reason; nothing is loaded."""

    async def scenario(managed: Managed, server: Running) -> None:
        headers = {"content-type": "application/json"}
        check_problem(await server.http.post(f"{PLACE}/{NAME}", content=body, headers=headers), 422, "invalid_request")
        assert managed.stage.states() == {}

    with_pool(scenario)


def test_nobody_manages_the_pool_without_the_token() -> None:
    """Nor a server that has none."""

    async def scenario(_managed: Managed, server: Running) -> None:
        server.http.headers["authorization"] = "Bearer wrong"
        check_problem(await server.http.get(PLACE), 401, "not_authenticated")
        check_problem(await server.http.delete(PLACE), 401, "not_authenticated")

    async def without() -> None:
        async with serving(EchoBackend(), control_token=TOKEN) as server:
            response = await server.http.get(PLACE, headers={"authorization": f"Bearer {TOKEN}"})
            check_problem(response, 503, "unavailable")

    with_pool(scenario)
    asyncio.run(without())


def test_settings_that_change_hold_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Budget and preloaded models follow the file; a mistake in it changes nothing and is told."""
    monkeypatch.setattr("mlxm.hub_pool._LOOK_S", 0.02)
    config = tmp_path / "config.toml"

    async def scenario() -> None:
        managed = Managed()
        options = managed.stage.options
        wishes = [
            Wishes(options=options, preload=(NAME, "nobody")),
            Wishes(options=msgspec.structs.replace(options, memory=limit(90)), preload=("other",)),
        ]
        errors: list[MlxmError] = []

        def reload() -> Wishes:
            if errors:
                raise errors[0]
            return wishes[1]

        async with asyncio.timeout(BOUND_S), managed.running() as server:
            managed.orders.start(wishes[0], config, reload)
            await until(lambda: managed.stage.states() == {NAME: "ready"})
            assert [error.code for error in managed.told] == ["model_not_found"]
            await asyncio.sleep(0.1)
            config.write_text("a")
            await until(lambda: set(managed.stage.states()) == {NAME, "other"})
            pool: dict[str, Any] = (await server.http.get(PLACE)).json()
            assert pool["budget_bytes"] == 90 * MB
            assert {row["model"]: row["pinned"] for row in pool["models"]} == {NAME: False, "other": True}
            errors.append(ConfigInvalid("memory.budget is wrong."))
            config.write_text("ab")
            await until(lambda: len(managed.told) == 2)
            assert managed.told[1].message == "memory.budget is wrong. The settings from before it still hold."
            assert (await server.http.get(PLACE)).json()["budget_bytes"] == 90 * MB

    asyncio.run(scenario())
