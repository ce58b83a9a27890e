"""Where the tokens of one step lie in a pool, and which blocks each of them looks at: host arithmetic, no MLX."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from mlxm.engine.plan import BLOCK_TOKENS, Chunk, Row

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

NEVER = -1e30
"""The score of a token that is not looked at."""
MIN_SHARERS = 4
MIN_SHARED_BLOCKS = 8
"""A shared run is read once for all its rows from this size on; below it the extra operations cost more."""
_TILE_SCORES = 1 << 19
"""Scores per tile: 2 MiB in each step of the computation."""
_MIN_TILE, _MAX_TILE = 16, 128
_WHOLE_CHUNK, _WHOLE_SCORES = 48, 3 << 19
"""A chunk so small beside rows is one tile: cut, it would pack all the keys again for a few queries."""


class Run(msgspec.Struct, frozen=True):
    """The first blocks of several rows' tables, where they are the same."""

    rows: Ints
    blocks: Ints


class Pairs(msgspec.Struct, frozen=True, kw_only=True):
    """Which row looks at which block, and at which of its tokens: from `low` up to but not including `high`."""

    rows: Ints
    blocks: Ints
    low: Ints
    high: Ints

    def bias(self) -> Floats:
        """[pairs, 32]: 0 for tokens looked at, NEVER for the others."""
        tokens = np.arange(BLOCK_TOKENS)[None]
        seen = (tokens >= self.low[:, None]) & (tokens < self.high[:, None])
        return np.where(seen, np.float32(0), np.float32(NEVER))


class Places:
    """The position and block of each token of a step: the rows' first, then the chunks'."""

    def __init__(self, rows: Sequence[Row], chunks: Sequence[Chunk]) -> None:
        self.row_positions = np.array([row.position for row in rows], dtype=np.int64)
        self.row_tables = [np.array(row.table[: row.position // BLOCK_TOKENS + 1], dtype=np.int64) for row in rows]
        self.chunk_starts = [chunk.start for chunk in chunks]
        self.chunk_lengths = [len(chunk.tokens) for chunk in chunks]
        self.chunk_tables = [
            np.array(chunk.table[: (chunk.start + len(chunk.tokens) - 1) // BLOCK_TOKENS + 1], dtype=np.int64)
            for chunk in chunks
        ]
        runs = [
            np.arange(start, start + length)
            for start, length in zip(self.chunk_starts, self.chunk_lengths, strict=True)
        ]
        self.positions: Ints = np.concatenate([self.row_positions, *runs])
        own = [np.array([table[-1] for table in self.row_tables], dtype=np.int64)]
        own += [table[run // BLOCK_TOKENS] for table, run in zip(self.chunk_tables, runs, strict=True)]
        self.blocks: Ints = np.concatenate(own)

    def slots(self, heads: int) -> NDArray[np.uint32]:
        """[tokens, heads]: the slots of a pool into which the tokens go."""
        ids = self.blocks[:, None] * heads + np.arange(heads)[None]
        return (ids * BLOCK_TOKENS + (self.positions % BLOCK_TOKENS)[:, None]).astype(np.uint32)


def pair_up(tables: Sequence[Ints], positions: Ints, window: int | None, runs: Sequence[Run] = ()) -> Pairs:
    """Every row with the blocks that it looks at, less the runs, in the order of the blocks."""
    last = positions // BLOCK_TOKENS
    oldest = np.zeros_like(positions) if window is None else np.maximum(positions - window + 1, 0)
    first = oldest // BLOCK_TOKENS
    for run in runs:
        first[run.rows] = len(run.blocks)
    counts = last - first + 1
    rows = np.repeat(np.arange(len(tables)), counts)
    indices = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts) + first[rows]
    blocks = np.concatenate([table[start:] for table, start in zip(tables, first, strict=True)])
    order = np.argsort(blocks, kind="stable")
    rows, indices = rows[order], indices[order]
    low = np.maximum(oldest[rows] - indices * BLOCK_TOKENS, 0)
    high = np.minimum(positions[rows] + 1 - indices * BLOCK_TOKENS, BLOCK_TOKENS)
    return Pairs(rows=rows, blocks=blocks[order], low=low, high=high)


def find_runs(tables: Sequence[Ints], positions: Ints) -> list[Run]:
    """The shared beginnings that are worth to be read once; no row is in two of them.

    A row's last block is never part of one: it is being written, and other rows of its sequence see less of it.
    """
    full = [table[:number] for table, number in zip(tables, positions // BLOCK_TOKENS, strict=True)]
    candidates = [row for row, table in enumerate(full) if len(table) >= MIN_SHARED_BLOCKS]
    return _best_runs(full, candidates, 0)[1] if len(candidates) >= MIN_SHARERS else []


def _best_runs(tables: list[Ints], rows: list[int], depth: int) -> tuple[int, list[Run]]:
    """The runs among rows that agree up to `depth` blocks that save the most block reads, and how many those are."""
    if len(rows) < MIN_SHARERS:
        return 0, []
    shortest = min(len(tables[row]) for row in rows)
    stack = np.stack([tables[row][depth:shortest] for row in rows])
    agrees = (stack == stack[0]).all(axis=0)
    agreed = depth + (int(agrees.argmin()) if not agrees.all() else len(agrees))
    saved = (len(rows) - 1) * agreed if agreed >= MIN_SHARED_BLOCKS else 0
    branches: dict[int, list[int]] = {}
    for row in rows:
        if len(tables[row]) > agreed:
            branches.setdefault(int(tables[row][agreed]), []).append(row)
    found = [_best_runs(tables, branch, agreed + 1) for branch in branches.values()]
    deeper = sum(saving for saving, _ in found)
    if saved >= deeper:
        return saved, [Run(np.array(rows), tables[rows[0]][:agreed])] if saved else []
    return deeper, [run for _, runs in found for run in runs]


class Tiling(msgspec.Struct, frozen=True):
    """Queries `start` to `stop`, and the spans of keys that they look at with a bias where some do not."""

    start: int
    stop: int
    spans: tuple[tuple[int, int, Floats | None], ...]


def tile(*, start: int, length: int, first_key: int, window: int | None, num_heads: int) -> list[Tiling]:
    """Cut a chunk's queries, which stand at `start` and after; keys are counted from position `first_key`."""
    tiles = []
    scores = num_heads * (start + length)
    is_whole = length <= _WHOLE_CHUNK and length * scores <= _WHOLE_SCORES
    most = length if is_whole else min(max(_TILE_SCORES // scores, _MIN_TILE), _MAX_TILE)
    begin = 0
    while begin < length:
        size = min(most, length - begin)
        positions = np.arange(start + begin, start + begin + size)
        tiles.append(Tiling(begin, begin + size, _spans(positions, first_key, window)))
        begin += size
    return tiles


def _spans(positions: Ints, first_key: int, window: int | None) -> tuple[tuple[int, int, Floats | None], ...]:
    begin, end = int(positions[0]), int(positions[-1]) + 1
    oldest = first_key if window is None else max(first_key, begin - window + 1)
    if window is None and oldest < begin:
        return (oldest - first_key, begin - first_key, None), (
            begin - first_key,
            end - first_key,
            _bias(positions, begin, end, None),
        )
    return ((oldest - first_key, end - first_key, _bias(positions, oldest, end, window)),)


def _bias(positions: Ints, begin: int, end: int, window: int | None) -> Floats:
    """[queries, keys], NEVER where a key comes after the query or has left its window."""
    seen = causal(positions, np.arange(begin, end), window)
    return np.where(seen, np.float32(0), np.float32(NEVER))


def causal(queries: Ints, keys: Ints, window: int | None) -> NDArray[np.bool_]:
    """[queries, keys]: which positions look at which."""
    seen = keys[None] <= queries[:, None]
    return seen if window is None else seen & (keys[None] > queries[:, None] - window)
