"""A search that shows what it has: rows from the first answer on, filled in as more becomes known of each model.

The Hub knows models for MLX by a tag that not all of mlx-community carry, so two listings are merged. What a model is,
stands in its config.json, which is fetched in the background, a few models at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, Final, Protocol

import msgspec

from mlxm.catalog.characteristics import Characteristics, Quantisation, describe_config
from mlxm.catalog.hub_answers import Facts, TensorCount
from mlxm.catalog.hub_files import select_files
from mlxm.catalog.hub_filters import Filters, Row, Sort, judge, sort_value, with_memory
from mlxm.catalog.hub_http import Query
from mlxm.errors import InvalidRequest, MlxmError

COMMUNITY: Final = "mlx-community"
_NUM_FILLED_AT_ONCE = 6
_PAGE = 100
_PACKED = "U32"
_MAX_LOOKED_AT = 500
_SORTS: Final[dict[Sort, str]] = {
    "downloads": "downloads",
    "likes": "likes",
    "modified": "lastModified",
    "created": "createdAt",
    "trending": "trendingScore",
}
_EXPANDED = (
    "downloads",
    "likes",
    "tags",
    "gated",
    "library_name",
    "pipeline_tag",
    "lastModified",
    "createdAt",
    "config",
    "safetensors",
)


class Found(msgspec.Struct, frozen=True, tag="found"):
    """A model, with what the listing says of it."""

    row: Row


class Filled(msgspec.Struct, frozen=True, tag="filled"):
    """The same row, complete; it takes the place of the one with the same name."""

    row: Row


class Dropped(msgspec.Struct, frozen=True, tag="dropped"):
    """The row turned out to be unwanted; `because` names the filter."""

    name: str
    because: str


SearchEvent = Found | Filled | Dropped


class Source(Protocol):
    """What a search asks of the Hub."""

    async def page(self, query: Query) -> tuple[list[Facts], Query | None]:
        """One page of a listing."""
        ...

    async def facts(self, name: str) -> Facts:
        """A model with all its files."""
        ...

    async def config(self, name: str, commit: str) -> dict[str, Any]:
        """A model's config.json."""
        ...


async def search_models(
    source: Source, query: str, filters: Filters, sort: Sort, limit: int
) -> AsyncGenerator[SearchEvent, None]:
    """The events of one search; closing it ends all its requests."""
    filters.check()
    if limit < 1:
        raise InvalidRequest("A search needs a limit of 1 or more.", param="limit")
    listing = _Listing(source, query, filters, sort, limit)
    filler = _Filler(source, filters)
    pending: set[asyncio.Task[Row]] = set()
    num_standing = 0
    try:
        while True:
            while num_standing < limit and (facts := await listing.pop()) is not None:
                row = first_row(facts)
                pending.add(asyncio.create_task(filler.fill(row, facts)))
                num_standing += 1
                yield Found(row)
            if not pending:
                return
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                event = _verdict(task.result(), filters)
                num_standing -= isinstance(event, Dropped)
                yield event
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)


def first_row(facts: Facts) -> Row:
    """What a listing says; the characteristics are those of the few keys of config.json that it repeats."""
    return Row(
        name=facts.id,
        downloads=facts.downloads,
        likes=facts.likes,
        tags=facts.tags,
        gated=facts.gated is not False,
        last_modified=facts.last_modified,
        created=facts.created,
        trending=facts.trending,
        characteristics=_describe(facts, facts.config, None),
    )


def _verdict(row: Row, filters: Filters) -> SearchEvent:
    because, undecided = judge(row, filters)
    if because is not None:
        return Dropped(row.name, because)
    return Filled(msgspec.structs.replace(row, undecided=undecided))


def _describe(facts: Facts, config: dict[str, Any] | None, size_bytes: int | None) -> Characteristics:
    known = describe_config({} if config is None else config, name=facts.id, tags=facts.tags, size_bytes=size_bytes)
    parameters = None if facts.safetensors is None else count_parameters(facts.safetensors, known.quantisation)
    if parameters is None:
        return known
    return msgspec.structs.replace(known, parameters=parameters, parameters_from="hub")


def count_parameters(counted: TensorCount, quantisation: Quantisation | None) -> int | None:
    """How many parameters a model has, None when that cannot be told.

    The Hub counts packed weights as the 32-bit words that hold them, and scales and biases with the rest.
    """
    words = counted.parameters.get(_PACKED, 0)
    if counted.total is None or not words:
        return counted.total
    if quantisation is None or not quantisation.bits or not quantisation.group_size or quantisation.overrides:
        return None
    packed = words * 32 // quantisation.bits
    per_group = 2 if quantisation.mode == "affine" else 1
    rest = counted.total - words - packed // quantisation.group_size * per_group
    return packed + max(rest, 0)


class _Filler:
    """Completes rows, a few at a time."""

    def __init__(self, source: Source, filters: Filters) -> None:
        self._source = source
        self._filters = filters
        self._slots = asyncio.Semaphore(_NUM_FILLED_AT_ONCE)

    async def fill(self, row: Row, facts: Facts) -> Row:
        """The row with all that the Hub can say; what it will not say is the row's problem, not the search's."""
        async with self._slots:
            try:
                row, facts = await self._with_sizes(row)
                row = await self._with_config(row, facts)
            except MlxmError as error:
                row = msgspec.structs.replace(row, problem=error.message)
        return msgspec.structs.replace(with_memory(row, self._filters), is_filled=True)

    async def _with_sizes(self, row: Row) -> tuple[Row, Facts]:
        facts = await self._source.facts(row.name)
        files = facts.files()
        if files is None:
            return row, facts
        chosen = select_files(files)
        return msgspec.structs.replace(
            row,
            size_bytes=sum(file.size_bytes for file in chosen),
            characteristics=msgspec.structs.replace(
                row.characteristics, weights_bytes=sum(file.size_bytes for file in chosen if file.is_weights)
            ),
        ), facts

    async def _with_config(self, row: Row, facts: Facts) -> Row:
        commit = "main" if facts.sha is None else facts.sha
        config = await self._source.config(facts.id, commit)
        known = _describe(facts, config, row.size_bytes)
        weights_bytes = row.characteristics.weights_bytes
        return msgspec.structs.replace(row, characteristics=msgspec.structs.replace(known, weights_bytes=weights_bytes))


class _Listing:
    """Every model for MLX that the Hub finds, once each, in the order asked for."""

    def __init__(self, source: Source, query: str, filters: Filters, sort: Sort, limit: int) -> None:
        asked = [("sort", _SORTS[sort]), ("limit", str(min(max(limit, 20), _PAGE)))]
        asked += [("expand", name) for name in _EXPANDED]
        if sort == "trending":
            asked.append(("expand", "trendingScore"))
        if query.strip():
            asked.append(("search", query.strip()))
        by_tag = [("filter", "mlx"), *asked]
        if filters.author is not None:
            by_tag.append(("author", filters.author))
        streams = [_Stream(source, by_tag)]
        if filters.author in (None, COMMUNITY):
            streams.append(_Stream(source, [("author", COMMUNITY), *asked]))
        self._streams = streams
        self._sort: Sort = sort
        self._seen: set[str] = set()
        self._num_looked_at = 0

    async def pop(self) -> Facts | None:
        """The next model, None when there are no more or enough were looked at."""
        while self._num_looked_at < _MAX_LOOKED_AT:
            heads = await asyncio.gather(*(stream.head() for stream in self._streams))
            known = [(sort_value(facts, self._sort), at) for at, facts in enumerate(heads) if facts is not None]
            if not known:
                return None
            facts = self._streams[max(known)[1]].take()
            self._num_looked_at += 1
            if facts.is_mlx and facts.id not in self._seen:
                self._seen.add(facts.id)
                return facts
        return None


class _Stream:
    """One listing, page by page."""

    def __init__(self, source: Source, query: Query) -> None:
        self._source = source
        self._next: Query | None = query
        self._facts: list[Facts] = []

    async def head(self) -> Facts | None:
        """The next model, None at the end."""
        while not self._facts and self._next is not None:
            self._facts, self._next = await self._source.page(self._next)
        return self._facts[0] if self._facts else None

    def take(self) -> Facts:
        """The head, which makes room for the next."""
        return self._facts.pop(0)
