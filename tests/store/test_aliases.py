from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from mlxm.errors import Conflict, InvalidRequest, MlxmError, NotFound
from mlxm.store.aliases import Alias, Aliases
from mlxm.store.db import Database

MODEL = "mlx-community/Qwen3-4B-4bit"
Use = Callable[[Aliases], Awaitable[None]]


@pytest.fixture
def run(tmp_path: Path) -> Callable[[Use], None]:
    """Do something with the aliases of one database."""

    def start(use: Use) -> None:
        async def main() -> None:
            async with await Database.open(tmp_path / "mlxm.db") as db:
                await use(Aliases(db))

        asyncio.run(main())

    return start


def test_an_alias_outlives_the_process_that_set_it(run: Callable[[Use], None]) -> None:
    """Set, replaced, listed by name, found, removed, each time with the database opened anew."""

    async def write(aliases: Aliases) -> None:
        assert await aliases.set("small", MODEL) == Alias("small", MODEL)
        await aliases.set("big", "openai/gpt-4o")
        await aliases.set("small", f"{MODEL}-b")

    async def read(aliases: Aliases) -> None:
        assert await aliases.list() == (Alias("big", "openai/gpt-4o"), Alias("small", f"{MODEL}-b"))
        assert await aliases.find("small") == Alias("small", f"{MODEL}-b")
        assert await aliases.find("tiny") is None
        await aliases.remove("big")

    async def read_again(aliases: Aliases) -> None:
        assert await aliases.list() == (Alias("small", f"{MODEL}-b"),)

    run(write)
    run(read)
    run(read_again)


@pytest.mark.parametrize("name", ["", "../x", "a b", "a/b/c", "x\0", "-x", "é", "a..b", "x" * 97])
def test_what_is_no_name_becomes_no_alias(run: Callable[[Use], None], name: str) -> None:
    """An alias is written where a model's name is, so the same characters are allowed."""

    async def use(aliases: Aliases) -> None:
        with pytest.raises(InvalidRequest):
            await aliases.set(name, MODEL)
        assert await aliases.list() == ()

    run(use)


@pytest.mark.parametrize("target", ["", "/etc/passwd", "../x", "a//b", "~/x", "a b", "x\n", "x" * 201, "-x"])
def test_an_alias_stands_for_no_path(run: Callable[[Use], None], target: str) -> None:
    """Its target is the name of a model, here or with a provider."""

    async def use(aliases: Aliases) -> None:
        with pytest.raises(InvalidRequest):
            await aliases.set("small", target)

    run(use)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (MODEL, "is the name of a model on this machine"),
        (MODEL.lower(), "is the name of a model on this machine"),
        ("mlxm/tiny", "belong to mlxm itself"),
        ("mlxm/other", "belong to mlxm itself"),
        ("MLXM", "belong to mlxm itself"),
        ("loop", "is an alias itself"),
        ("second", "is an alias itself"),
        ("target", "the alias first stands for it"),
    ],
)
def test_an_alias_hides_nothing_and_leads_to_a_model(run: Callable[[Use], None], name: str, message: str) -> None:
    """Installed and built-in models keep their names, and looking an alias up is one step."""

    async def use(aliases: Aliases) -> None:
        await aliases.set("first", "target")
        targets = {"loop": "loop", "second": "first"}
        with pytest.raises(Conflict, match=message):
            await aliases.set(name, targets.get(name, "org/elsewhere"), installed={MODEL})
        assert await aliases.list() == (Alias("first", "target"),)

    run(use)


@pytest.mark.parametrize(("name", "hint"), [("smal", "Near names: small."), ("zzz", "List them with: mlxm alias ls.")])
def test_removing_an_alias_that_is_not_there_says_which_are(run: Callable[[Use], None], name: str, hint: str) -> None:
    """A slip of the fingers is answered with the name that was meant."""

    async def use(aliases: Aliases) -> None:
        await aliases.set("small", MODEL)
        with pytest.raises(NotFound) as caught:
            await aliases.remove(name)
        assert isinstance(caught.value, MlxmError)
        assert caught.value.hint == hint

    run(use)
