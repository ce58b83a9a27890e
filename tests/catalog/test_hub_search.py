from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing
from typing import Any, TypeVar

import pytest

from mlxm.catalog.characteristics import Capability, Characteristics, Quantisation
from mlxm.catalog.hub import Dropped, Filled, Filters, Found, HubApi, HubOptions, Row, SearchEvent, sort_rows
from mlxm.catalog.hub_answers import TensorCount
from mlxm.catalog.hub_filters import judge
from mlxm.catalog.hub_search import count_parameters
from mlxm.errors import Forbidden, InvalidRequest, Unavailable
from mlxm.testing.fake_hub import FakeHub, Mishap

T = TypeVar("T")


def config(model_type: str, **more: Any) -> bytes:
    """A config.json."""
    shape = {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 100, "max_position_embeddings": 4096,
    }  # fmt: skip
    return json.dumps({"model_type": model_type, **shape, **more}).encode()


def four_bits(model_type: str) -> bytes:
    """The same, quantised."""
    return config(model_type, quantization={"bits": 4, "group_size": 64})


def model(content: bytes, size_bytes: int = 1000) -> dict[str, bytes]:
    """A repository."""
    return {"config.json": content, "model.safetensors": b"x" * size_bytes, "old.bin": b"y" * 5000}


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    """With models of several kinds, most of them for MLX."""
    with FakeHub() as running:
        running.add("mlx-community/Qwen3-4bit", model(four_bits("qwen3")), downloads=50, likes=1)
        running.add("mlx-community/Llama-4bit", model(four_bits("llama"), 3000), downloads=40, likes=9)
        running.add(
            "mlx-community/untagged",
            model(config("llama", torch_dtype="bfloat16")),
            downloads=30,
            tags=(),
            library=None,
        )
        running.add(
            "someone/Qwen3-mxfp4",
            model(config("qwen3", quantization={"bits": 4, "group_size": 32, "mode": "mxfp4"})),
            downloads=20,
        )
        running.add("someone/strange", model(b'{"model_type": "never_seen"}'), downloads=10, trending=1.5)
        running.add("other/torch", model(config("llama")), downloads=99, tags=("pytorch",), library="transformers")
        yield running


def ask(hub: FakeHub, use: Callable[[HubApi], Awaitable[T]]) -> T:
    """Ask within bounded time."""

    async def run() -> T:
        async with asyncio.timeout(30), HubApi(HubOptions(endpoint=hub.url)) as api:
            return await use(api)

    return asyncio.run(run())


def search(hub: FakeHub, query: str = "", filters: Filters | None = None, **options: Any) -> list[SearchEvent]:
    """All events of a search."""

    async def use(api: HubApi) -> list[SearchEvent]:
        return [event async for event in api.search(query, filters, **options)]

    return ask(hub, use)


def found_names(events: list[SearchEvent]) -> list[str]:
    """The names in the order in which they came."""
    return [event.row.name for event in events if isinstance(event, Found)]


def final_rows(events: list[SearchEvent]) -> dict[str, Row]:
    """What stands at the end."""
    return {event.row.name: event.row for event in events if isinstance(event, Filled)}


def test_only_models_for_mlx_are_found(hub: FakeHub) -> None:
    """Also those of the community that carry no tag; the most downloaded first, each once."""
    assert found_names(search(hub)) == [
        "mlx-community/Qwen3-4bit",
        "mlx-community/Llama-4bit",
        "mlx-community/untagged",
        "someone/Qwen3-mxfp4",
        "someone/strange",
    ]
    assert found_names(search(hub, "qwen3")) == ["mlx-community/Qwen3-4bit", "someone/Qwen3-mxfp4"]
    assert found_names(search(hub, sort="likes"))[0] == "mlx-community/Llama-4bit"
    assert found_names(search(hub, sort="trending"))[0] == "someone/strange"
    for sort in ("modified", "created"):
        assert len(found_names(search(hub, sort=sort))) == 5


def test_a_hub_that_ignores_filters_is_not_believed(hub: FakeHub) -> None:
    """What is not for MLX is not listed, whatever comes."""

    def add_strangers(body: bytes) -> bytes:
        return json.dumps([{"id": "other/torch", "tags": ["pytorch"], "downloads": 99}, *json.loads(body)]).encode()

    hub.break_with(Mishap("/api/models", times=None, replace=add_strangers))
    assert "other/torch" not in found_names(search(hub))


def test_an_author_is_the_hubs_own_filter(hub: FakeHub) -> None:
    """The community is asked without its tag."""
    assert found_names(search(hub, filters=Filters(author="someone"))) == ["someone/Qwen3-mxfp4", "someone/strange"]
    assert "mlx-community/untagged" in found_names(search(hub, filters=Filters(author="mlx-community")))
    assert found_names(search(hub, filters=Filters(author="nobody"))) == []
    assert found_names(search(hub, filters=Filters(author="other"))) == []


def test_rows_come_before_anything_is_known_of_them(hub: FakeHub) -> None:
    """Every row of the first answer is there while the Hub still keeps back what each model is."""
    gate = threading.Event()
    hub.break_with(Mishap("*/config.json", times=None, hold=gate), Mishap("*/revision/*", times=None, hold=gate))

    async def use(api: HubApi) -> list[SearchEvent]:
        async with aclosing(api.search("")) as events:
            first = [await anext(events) for _ in range(5)]
            assert all(isinstance(event, Found) and not event.row.is_filled for event in first)
            assert hub.count("*/config.json") == 0
            gate.set()
            return [event async for event in events]

    rest = ask(hub, use)
    assert all(isinstance(event, Filled) and event.row.is_filled for event in rest)
    assert len(rest) == 5


def test_columns_fill_in(hub: FakeHub) -> None:
    """What a model is, what a pull would fetch and what memory it would take."""
    rows = final_rows(search(hub, filters=Filters(fits_bytes=1 << 40)))
    row = rows["mlx-community/Qwen3-4bit"]
    assert (row.author, row.downloads, row.likes, row.gated, row.problem) == ("mlx-community", 50, 1, False, None)
    assert (row.characteristics.family, row.characteristics.context_length) == ("qwen3", 4096)
    assert row.characteristics.quantisation is not None
    assert row.characteristics.quantisation.bits == 4
    assert row.characteristics.weights_bytes == 1000
    assert row.size_bytes == 1000 + len(four_bits("qwen3"))
    assert row.memory_bytes is not None
    assert row.memory_bytes > 1000
    assert row.fits is True


def test_only_a_few_models_are_asked_for_at_once() -> None:
    """However many there are."""
    gate = threading.Event()
    with FakeHub() as hub:
        for number in range(20):
            hub.add(f"mlx-community/m{number:02}", model(four_bits("llama")), downloads=number)
        hub.break_with(Mishap("*/revision/*", times=None, hold=gate))

        async def use(api: HubApi) -> int:
            async with aclosing(api.search("")) as events:
                for _ in range(20):
                    await anext(events)
                waiting = asyncio.ensure_future(anext(events))
                await asyncio.to_thread(hub.wait_for, "*/revision/*")
                await asyncio.to_thread(hub.stopping.wait, 0.2)
                count = hub.count("*/revision/*")
                gate.set()
                await waiting
                return count

        assert 1 <= ask(hub, use) <= 6


def test_a_search_that_is_closed_asks_no_more(hub: FakeHub) -> None:
    """Its requests end with it."""
    gate = threading.Event()
    hub.break_with(Mishap("*/revision/*", times=None, hold=gate))

    async def use(api: HubApi) -> int:
        async with aclosing(api.search("")) as events:
            await anext(events)
            await asyncio.to_thread(hub.wait_for, "*/revision/*")
        return len(asyncio.all_tasks())

    assert ask(hub, use) == 1
    gate.set()
    assert hub.count("*/config.json") == 0


def test_filters_drop_what_does_not_fit_and_keep_what_is_unknown(hub: FakeHub) -> None:
    """Together; what cannot be told is told, and left out only on demand."""
    filters = Filters(family="qwen", quantisation="4bit")
    events = search(hub, filters=filters)
    rows = final_rows(events)
    assert rows["mlx-community/Qwen3-4bit"].undecided == ()
    assert set(rows["someone/strange"].undecided) <= {"family", "quantisation"}
    dropped = {event.name: event.because for event in events if isinstance(event, Dropped)}
    assert dropped == {"mlx-community/Llama-4bit": "family", "mlx-community/untagged": "family"}
    strict = search(hub, filters=Filters(family="qwen", include_unknown=False))
    assert set(final_rows(strict)) == {"mlx-community/Qwen3-4bit", "someone/Qwen3-mxfp4"}
    assert Dropped("someone/strange", "family unknown") in strict


def test_a_dropped_row_makes_room_for_the_next(hub: FakeHub) -> None:
    """At most as many stand at any time as were asked for."""
    events = search(hub, filters=Filters(family="qwen3", include_unknown=False), limit=1)
    assert found_names(events) == [
        "mlx-community/Qwen3-4bit",
    ]
    events = search(hub, filters=Filters(max_size_bytes=100_000, quantisation="mxfp4", include_unknown=False), limit=1)
    standing = 0
    for event in events:
        standing += isinstance(event, Found)
        standing -= isinstance(event, Dropped)
        assert standing <= 1
    assert set(final_rows(events)) == {"someone/Qwen3-mxfp4"}


def test_pages_are_fetched_while_there_is_room() -> None:
    """And the search gives up on an endless list."""
    with FakeHub(page_size=2) as hub:
        for number in range(5):
            hub.add(f"someone/m{number}", model(four_bits("llama")), downloads=number)
        assert len(found_names(search(hub))) == 5
        assert len(found_names(search(hub, limit=3))) == 3

        def strangers(_: bytes) -> bytes:
            return json.dumps([{"id": f"x/{number}"} for number in range(100)]).encode()

        link = '<http://x/api/models?cursor=0>; rel="next"'
        hub.break_with(Mishap("/api/models", times=None, replace=strangers, headers={"Link": link}))
        assert search(hub) == []
        assert hub.count("/api/models") < 20


def test_a_model_that_keeps_its_files_back_stays_with_its_problem(hub: FakeHub) -> None:
    """The search goes on, and what the listing said stands."""
    hub.add("someone/gated", model(four_bits("qwen3")), downloads=60, gated=True)
    hub.add("someone/empty", {"README.md": b""}, downloads=5)
    hub.break_with(Mishap("/api/models/someone/strange/*", times=None, status=404, error_code="RepoNotFound"))
    rows = final_rows(search(hub))
    gated, strange, empty = (rows[f"someone/{name}"] for name in ("gated", "strange", "empty"))
    assert gated.gated
    assert (gated.characteristics.family, gated.size_bytes) == ("qwen3", 1000 + len(four_bits("qwen3")))
    assert gated.problem == "someone/gated is open only to those who accepted its terms."
    assert strange.problem == "The Hub has no model someone/strange."
    assert (strange.size_bytes, strange.is_filled) == (None, True)
    assert empty.problem == "someone/empty does not have that file."
    assert all(rows[name].problem is None for name in ("mlx-community/Qwen3-4bit", "someone/Qwen3-mxfp4"))


def test_a_search_that_makes_no_sense_is_refused(hub: FakeHub) -> None:
    """Before anything is asked; a Hub that refuses is told."""
    with pytest.raises(InvalidRequest, match="flying is not a capability"):
        search(hub, filters=Filters(capabilities=("flying",)))
    with pytest.raises(InvalidRequest, match="limit"):
        search(hub, limit=0)
    assert hub.count() == 0
    hub.break_with(Mishap("/api/models", status=400))
    with pytest.raises(Unavailable, match="400"):
        search(hub)


def test_a_listing_without_sizes_leaves_them_unknown(hub: FakeHub) -> None:
    """Some mirrors keep them back."""

    def without_files(body: bytes) -> bytes:
        return json.dumps({**json.loads(body), "siblings": None}).encode()

    hub.break_with(Mishap("*/revision/*", times=None, replace=without_files))
    row = final_rows(search(hub))["mlx-community/Qwen3-4bit"]
    assert (row.size_bytes, row.characteristics.family, row.problem) == (None, "qwen3", None)


def test_a_token_that_nobody_gave_is_told(hub: FakeHub) -> None:
    """Also where only names are looked for."""
    hub.break_with(Mishap("/api/models", times=None, status=401))

    async def run() -> None:
        async with HubApi(HubOptions(endpoint=hub.url, token="invented")) as api:
            await anext(api.search(""))

    with pytest.raises(Forbidden, match="does not know the token"):
        asyncio.run(run())


YES, NO = Capability(answer="yes", tier="tags"), Capability(answer="no", tier="tags")
FOUR_BITS = Quantisation(bits=4, group_size=64)
MXFP4 = Quantisation(bits=4, group_size=32, mode="mxfp4")
PACKED = Characteristics(kind="text", family="qwen3", quantisation=FOUR_BITS, tool_use=YES, reasoning=NO)
GPTQ = Characteristics(quantisation=Quantisation(bits=None, mode="gptq"))
PLAIN = Characteristics(kind="vision", family="gemma3", dtype="bfloat16")
NOTHING = Characteristics()


def row(name: str = "a/b", **facts: Any) -> Row:
    """A row of which little is known."""
    little = {"name": name, "downloads": 0, "likes": 0, "tags": (), "gated": False, "last_modified": None}
    return Row(**{**little, **facts})


@pytest.mark.parametrize(
    ("known", "filters", "because", "undecided"),
    [
        (PACKED, Filters(), None, ()),
        (PACKED, Filters(family="Qwen"), None, ()),
        (PACKED, Filters(family="qwen2"), "family", ()),
        (NOTHING, Filters(family="qwen2"), None, ("family",)),
        (PACKED, Filters(quantisation="4"), None, ()),
        (PACKED, Filters(quantisation="4-bits"), None, ()),
        (PACKED, Filters(quantisation="8bit"), "quantisation", ()),
        (PACKED, Filters(quantisation="affine"), None, ()),
        (PACKED, Filters(quantisation="mxfp4"), "quantisation", ()),
        (PACKED, Filters(quantisation="bf16"), "quantisation", ()),
        (PLAIN, Filters(quantisation="bf16"), None, ()),
        (PLAIN, Filters(quantisation="bfloat16"), None, ()),
        (PLAIN, Filters(quantisation="4bit"), "quantisation", ()),
        (NOTHING, Filters(quantisation="4bit"), None, ("quantisation",)),
        (GPTQ, Filters(quantisation="4bit"), None, ("quantisation",)),
        (PACKED, Filters(capabilities=("tools", "text")), None, ()),
        (PACKED, Filters(capabilities=("reasoning",)), "reasoning", ()),
        (PACKED, Filters(capabilities=("vision",)), "vision", ()),
        (PLAIN, Filters(capabilities=("text", "vision")), None, ()),
        (PLAIN, Filters(capabilities=("tools",)), None, ("tools",)),
        (NOTHING, Filters(capabilities=("vision", "tools")), None, ("vision", "tools")),
        (NOTHING, Filters(capabilities=("vision",), include_unknown=False), "vision unknown", ("vision",)),
        (PACKED, Filters(max_size_bytes=999), "size", ()),
        (PACKED, Filters(max_size_bytes=1000), None, ()),
        (PACKED, Filters(fits_bytes=1), None, ("fits",)),
    ],
)
def test_each_filter_says_yes_no_or_unknown(
    known: Characteristics, filters: Filters, because: str | None, undecided: tuple[str, ...]
) -> None:
    """Unknown is never no."""
    assert judge(row(characteristics=known, size_bytes=1000), filters) == (because, undecided)


def test_rows_are_ordered_as_the_hub_orders_them() -> None:
    """What a model does not say is least."""
    rows = [
        row("a", trending=1.5),
        row("b", last_modified="2025-01-01", likes=3),
        row("c", created="2025-01-01", downloads=2),
    ]
    first = {sort: sort_rows(rows, sort)[0].name for sort in ("downloads", "likes", "modified", "created", "trending")}
    assert first == {"downloads": "c", "likes": "b", "modified": "b", "created": "c", "trending": "a"}


@pytest.mark.parametrize(
    ("counted", "quantisation", "parameters"),
    [
        (TensorCount({"BF16": 1000}, 1000), None, 1000),
        (TensorCount({"U32": 800, "BF16": 264}, 1064), FOUR_BITS, 6464),
        (TensorCount({"U32": 800, "U8": 200, "BF16": 50}, 1050), MXFP4, 6450),
        (TensorCount({"U32": 800, "BF16": 264}, 1064), Quantisation(bits=4, group_size=64, overrides=3), None),
        (TensorCount({"U32": 800, "BF16": 264}, 1064), None, None),
        (TensorCount({}, None), None, None),
    ],
)
def test_packed_weights_count_as_what_they_stand_for(
    counted: TensorCount, quantisation: Quantisation | None, parameters: int | None
) -> None:
    """The Hub counts words and scales; where that cannot be undone, nothing is claimed."""
    assert count_parameters(counted, quantisation) == parameters


def test_the_hubs_count_is_taken_where_there_is_one(hub: FakeHub) -> None:
    """Into the row."""

    def counted(body: bytes) -> bytes:
        facts = json.loads(body)
        return json.dumps({**facts, "safetensors": {"parameters": {"BF16": 7}, "total": 7}}).encode()

    hub.break_with(Mishap("*/revision/*", times=None, replace=counted))
    row = final_rows(search(hub))["mlx-community/untagged"]
    assert (row.characteristics.parameters, row.characteristics.parameters_from) == (7, "hub")


def test_the_generator_is_one() -> None:
    """So that whoever leaves early can close it."""

    async def test() -> bool:
        async with HubApi(HubOptions()) as api:
            return isinstance(api.search(""), AsyncGenerator)

    assert asyncio.run(test())
