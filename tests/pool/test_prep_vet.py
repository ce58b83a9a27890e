from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from mlxm.errors import Draining, InvalidRequest
from mlxm.pool import prep as prep_module
from mlxm.pool.prep import Prep, PrepLimits
from mlxm.tiny.families import FAMILIES
from mlxm.tiny.tokenizer import write_tokenizer
from mlxm.types import Grammar, Message, TextPart

MIB = 1024 * 1024
LIMITS = PrepLimits()
DEAR = Grammar(
    kind="json_schema",
    source=json.dumps({"properties": {f"p{n}": {"type": "string", "pattern": f"^[a-z]{{{n}}}$"} for n in range(1500)}}),
)
"""Takes a second to be read, and is refused then."""


def with_prep(work: Callable[[Prep], Awaitable[None]], limits: PrepLimits = LIMITS) -> None:
    """Run `work` with a started Prep and close it; no test takes longer than a minute."""

    async def run() -> None:
        prep = Prep(limits)
        await prep.start()
        try:
            async with asyncio.timeout(60):
                await work(prep)
        finally:
            await prep.close()

    asyncio.run(run())


def test_a_grammar_is_vetted_once() -> None:
    """An equal one gets the same answer without asking again."""

    async def work(prep: Prep) -> None:
        good, bad = Grammar(kind="regex", source="a+"), Grammar(kind="json_schema", source='{"not": {}}')
        for _ in range(2):
            await prep.vet(good)
            with pytest.raises(InvalidRequest, match="not supported: not") as refused:
                await prep.vet(bad)
            assert refused.value.param == "response_format"
        assert next(prep._numbers) == 2

    with_prep(work)


def test_only_the_latest_verdicts_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes again is not forgotten first."""
    monkeypatch.setattr(prep_module, "_MAX_VERDICTS", 2)

    async def work(prep: Prep) -> None:
        for source in ("a", "b", "a", "c", "a"):
            await prep.vet(Grammar(kind="regex", source=source))
        assert next(prep._numbers) == 3
        await prep.vet(Grammar(kind="regex", source="b"))
        assert next(prep._numbers) == 5

    with_prep(work)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (PrepLimits(timeout_s=0.05), "could not be read within 0.05 s"),
        (PrepLimits(timeout_s=20, memory_bytes=4 * MIB), "too much memory"),
    ],
    ids=["time", "memory"],
)
def test_a_grammar_that_takes_too_much_is_refused(tmp_path: Path, limits: PrepLimits, words: str) -> None:
    """It costs its own request only, and is tried anew when it comes again: the machine may have been busy."""
    write_tokenizer(tmp_path, FAMILIES["chatml"], context=512)

    async def work(prep: Prep) -> None:
        for _ in range(2):
            with pytest.raises(InvalidRequest, match=words) as refused:
                await prep.vet(DEAR)
            assert refused.value.param == "response_format"
        assert next(prep._numbers) == 2
        assert (await prep.render(tmp_path, (Message(role="user", content=(TextPart("x"),)),))).ids

    with_prep(work, limits)


def test_nothing_is_vetted_before_the_start() -> None:
    """It would wait for ever."""
    with pytest.raises(Draining):
        asyncio.run(Prep(LIMITS).vet(DEAR))
