"""The rows of a search, and which of them are wanted: what is not known of a model is neither yes nor no."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Literal

import msgspec

from mlxm.catalog import memory
from mlxm.catalog.characteristics import Answer, Characteristics
from mlxm.catalog.hub_answers import Facts
from mlxm.errors import InvalidRequest

Sort = Literal["downloads", "likes", "modified", "created", "trending"]
CAPABILITIES = ("text", "vision", "embedding", "reranker", "audio", "tools", "reasoning")
_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "f16": "float16", "fp32": "float32", "f32": "float32"}
_BITS = re.compile(r"(\d+)(?:-?bits?)?")


class Filters(msgspec.Struct, frozen=True, kw_only=True):
    """What a model must be; all of it at once. `author` is the Hub's own filter, the others need a model's files.

    `include_unknown` keeps models of which a filter cannot tell; their row names that filter in `undecided`.
    """

    author: str | None = None
    family: str | None = None
    """A family or the beginning of its name: qwen finds qwen2 and qwen3."""
    quantisation: str | None = None
    """4bit, or a mode such as mxfp4, or a type such as bf16 for models that are not quantised."""
    capabilities: tuple[str, ...] = ()
    """Of CAPABILITIES, all of them."""
    max_size_bytes: int | None = None
    fits_bytes: int | None = None
    """A budget of memory that the model must fit into."""
    fits_context: int = 4096
    """With this many tokens of context."""
    include_unknown: bool = True

    def check(self) -> None:
        """Raise InvalidRequest for a capability that nothing has."""
        for name in self.capabilities:
            if name not in CAPABILITIES:
                raise InvalidRequest(
                    f"{name} is not a capability.", hint=f"Take one of {', '.join(CAPABILITIES)}.", param="capability"
                )


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A model in a search; what is not known yet, or not at all, is None or "unknown"."""

    name: str
    downloads: int
    likes: int
    tags: tuple[str, ...]
    gated: bool
    last_modified: str | None
    created: str | None = None
    trending: float | None = None
    characteristics: Characteristics = Characteristics()
    size_bytes: int | None = None
    """What a pull would fetch."""
    memory_bytes: int | None = None
    """What it would take with the context of the filters."""
    fits: bool | None = None
    is_filled: bool = False
    """Whether everything that can be known is known."""
    undecided: tuple[str, ...] = ()
    """The filters that cannot tell."""
    problem: str | None = None
    """Why something stayed unknown."""

    @property
    def author(self) -> str:
        """Whose model it is."""
        return self.name.partition("/")[0]


def sort_rows(rows: Iterable[Row], sort: Sort) -> list[Row]:
    """Rows as the Hub orders them: the most first."""
    return sorted(rows, key=lambda row: (sort_value(row, sort), row.name), reverse=True)


def sort_value(model: Row | Facts, sort: Sort) -> float | str:
    """What a model is sorted by."""
    values: dict[Sort, float | str | None] = {
        "downloads": model.downloads,
        "likes": model.likes,
        "modified": model.last_modified,
        "created": model.created,
        "trending": model.trending,
    }
    value = values[sort]
    if value is None:
        return "" if sort in ("modified", "created") else -1.0
    return value


def judge(row: Row, filters: Filters) -> tuple[str | None, tuple[str, ...]]:
    """The filter that the model fails, if it does, and those that cannot tell."""
    verdicts = dict(_verdicts(row, filters))
    undecided = tuple(name for name, verdict in verdicts.items() if verdict is None)
    failed = next((name for name, verdict in verdicts.items() if verdict is False), None)
    if failed is None and undecided and not filters.include_unknown:
        failed = f"{undecided[0]} unknown"
    return failed, undecided


def with_memory(row: Row, filters: Filters) -> Row:
    """The row with what the model would take."""
    found = memory.estimate(row.characteristics, row.characteristics.weights_bytes, filters.fits_context)
    if found is None:
        return row
    budget = filters.fits_bytes
    fits = None if budget is None else memory.fits(found.total_bytes, budget)
    return msgspec.structs.replace(row, memory_bytes=found.total_bytes, fits=fits)


def _verdicts(row: Row, filters: Filters) -> Iterator[tuple[str, bool | None]]:
    known = row.characteristics
    if filters.family is not None:
        yield "family", _is_family(known, filters.family)
    if filters.quantisation is not None:
        yield "quantisation", _is_quantised(known, filters.quantisation)
    for name in filters.capabilities:
        yield name, _can(known, name)
    if filters.max_size_bytes is not None:
        yield "size", None if row.size_bytes is None else row.size_bytes <= filters.max_size_bytes
    if filters.fits_bytes is not None:
        yield "fits", row.fits


def _is_family(known: Characteristics, wanted: str) -> bool | None:
    if known.family == "unknown":
        return None
    return known.family.lower().startswith(wanted.lower())


def _is_quantised(known: Characteristics, wanted: str) -> bool | None:
    name = wanted.lower()
    bits = _BITS.fullmatch(name)
    if known.quantisation is None:
        if known.dtype is None:
            return None
        return bits is None and known.dtype == _DTYPES.get(name, name)
    if bits is None:
        return known.quantisation.mode == name
    return None if known.quantisation.bits is None else known.quantisation.bits == int(bits[1])


def _can(known: Characteristics, name: str) -> bool | None:
    answers: dict[Answer, bool | None] = {"yes": True, "no": False, "unknown": None}
    if name == "tools":
        return answers[known.tool_use.answer]
    if name == "reasoning":
        return answers[known.reasoning.answer]
    if known.kind == "unknown":
        return None
    return known.kind == name or (name == "text" and known.kind == "vision")
