import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from mlxm.errors import Conflict, NotFound
from mlxm.store.db import Database
from mlxm.store.responses import Responses, StoredResponse

HOUR_S = 3600.0


def with_responses(path: Path, scenario: Callable[[Responses], Awaitable[None]], keep_s: float = HOUR_S) -> None:
    """Run a scenario on a database of its own."""

    async def run() -> None:
        async with await Database.open(path / "mlxm.db") as db:
            await scenario(Responses(db, keep_s=keep_s))

    asyncio.run(run())


def stored(name: str, *, previous: str | None = None, owner: str | None = None, age_s: float = 0.0) -> StoredResponse:
    """A small response."""
    return StoredResponse(
        id=name,
        owner=owner,
        created_at=time.time() - age_s,
        previous_id=previous,
        input=b"[]",
        output=b"[]",
        response=b"{}",
    )


def test_a_chain_is_read_from_its_beginning(tmp_path: Path) -> None:
    """And not at all when a link is missing."""

    async def scenario(responses: Responses) -> None:
        links = [stored("a"), stored("b", previous="a"), stored("c", previous="b"), stored("d", previous="a")]
        for each in links:
            await responses.add(each)
        assert await responses.find("b") == links[1]
        assert await responses.chain("c") == tuple(links[:3])
        await responses.delete("a")
        with pytest.raises(NotFound, match="response a"):
            await responses.chain("c")
        with pytest.raises(NotFound, match="response x"):
            await responses.chain("x")
        with pytest.raises(NotFound, match="response a"):
            await responses.delete("a")

    with_responses(tmp_path, scenario)


def test_each_owner_sees_its_own(tmp_path: Path) -> None:
    """Also when it knows the id, and no chain leads from one to the other."""

    async def scenario(responses: Responses) -> None:
        await responses.add(stored("a", owner="x"))
        await responses.add(stored("b", owner="y", previous="a"))
        await responses.add(stored("c"))
        assert (await responses.find("a", "x")).id == "a"
        for name, owner in (("a", "y"), ("a", None), ("c", "x")):
            with pytest.raises(NotFound):
                await responses.find(name, owner)
            with pytest.raises(NotFound):
                await responses.delete(name, owner)
        with pytest.raises(NotFound, match="response a"):
            await responses.chain("b", "y")

    with_responses(tmp_path, scenario)


def test_an_id_is_taken_once(tmp_path: Path) -> None:
    """The first one stays."""

    async def scenario(responses: Responses) -> None:
        await responses.add(stored("a"))
        with pytest.raises(Conflict, match="a is stored already"):
            await responses.add(stored("a"))

    with_responses(tmp_path, scenario)


def test_time_is_up(tmp_path: Path) -> None:
    """What is too old is not found, and goes with the next write or when it is purged; all can go at once."""

    async def scenario(responses: Responses) -> None:
        await responses.add(stored("old", age_s=2 * HOUR_S))
        with pytest.raises(NotFound):
            await responses.find("old")
        assert await responses.purge() == 1
        await responses.add(stored("old", age_s=2 * HOUR_S))
        await responses.add(stored("new"))
        assert await responses.purge() == 0
        assert await responses.purge(time.time() + 1) == 1

    with_responses(tmp_path, scenario)
