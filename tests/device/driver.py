"""Plays sequences on a runner step by step: blocks in shuffled order, chunks of odd sizes, and mlx-lm's own answers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generate_step

from mlxm.device.kv_store import KVStore, read_shapes
from mlxm.device.loader import LoadedModel, load
from mlxm.device.runner import PagedRunner
from mlxm.device.sampler import Sampler
from mlxm.engine.blocks import num_blocks_for
from mlxm.engine.plan import BLOCK_TOKENS, Chunk, Outcome, Plan, Row, RunnerFacts
from mlxm.testing import ARCHITECTURES, build_models
from mlxm.types import Sampling

GREEDY = Sampling(temperature=0.0)
LENGTHS = (1, 31, 32, 33, 64, 100)
NUM_BLOCKS = 120


@cache
def tiny(architecture: str, folder: Path) -> LoadedModel:
    """A tiny model, loaded once."""
    return load(tiny_folders(folder)[architecture], lambda _done, _total: None)


@cache
def tiny_folders(folder: Path) -> dict[str, Path]:
    """Tiny models of all architectures: together they take little longer than one."""
    return build_models(ARCHITECTURES, folder)


def prompt(length: int, seed: int = 0) -> list[int]:
    """Ordinary tokens."""
    numbers = random.Random(1000 * length + seed)
    return [numbers.randrange(10, 1000) for _ in range(length)]


def answer_alone(model: Any, tokens: Sequence[int], num_tokens: int) -> list[int]:
    """What mlx-lm answers."""
    return [int(token) for token, _ in generate_step(mx.array(list(tokens)), model, max_tokens=num_tokens)]


def make_runner(store: KVStore, *, runs_ahead: bool = False) -> PagedRunner:
    """A runner on a store."""
    facts = RunnerFacts(
        kind=store.kind,
        why="",
        num_blocks=store.pools.num_blocks,
        max_rows=16,
        shares_prefixes=True,
        runs_ahead=runs_ahead,
        block_bytes=store.pools.block_bytes,
    )
    return PagedRunner(store, Sampler(), facts)


def make_store(make: Any, model: Any, num_blocks: int = NUM_BLOCKS) -> KVStore:
    """A store as the product builds it."""
    store: KVStore = make(model, read_shapes(model), num_blocks)
    return store


@dataclass
class Playing:
    """One sequence."""

    id: int
    tokens: list[int]
    end: int
    table: list[int]
    done: int = 0
    sampling: Sampling = GREEDY
    seed: int = 0
    failed: bool = False
    num_prompt: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_prompt = len(self.tokens)

    @property
    def answer(self) -> list[int]:
        """What came after the prompt."""
        return self.tokens[self.num_prompt :]


class Player:
    """Sequences and the blocks that they own."""

    def __init__(self, runner: PagedRunner, seed: int = 0) -> None:
        self.runner = runner
        self._random = random.Random(seed)
        self._free = list(range(1, runner.facts.num_blocks))
        self._random.shuffle(self._free)
        self.playing: list[Playing] = []
        self._num_begun = 0

    def blocks(self, num_tokens: int) -> list[int]:
        """Blocks for so many tokens, in no order."""
        return [self._free.pop() for _ in range(num_blocks_for(num_tokens))]

    def begin(self, tokens: Sequence[int], num_tokens: int, **facts: Any) -> Playing:
        """Let a sequence join; without a table among its facts it gets blocks of its own."""
        table = facts.pop("table", None)
        end = len(tokens) + num_tokens
        playing = Playing(
            id=self._num_begun,
            tokens=list(tokens),
            end=end,
            table=self.blocks(end) if table is None else table,
            **facts,
        )
        self._num_begun += 1
        self.playing.append(playing)
        return playing

    def plan(self, chunk_sizes: Sequence[int], **others: Any) -> tuple[Plan, list[Playing], list[Playing]]:
        """A step for all that play, and who its rows and chunks are."""
        rows, chunks = [], []
        for each in self.playing:
            left = each.num_prompt - 1 - each.done
            if left > 0:
                size = min(left, self._random.choice(chunk_sizes))
                tokens = each.tokens[each.done : each.done + size]
                chunks.append((each, Chunk(sequence=each.id, start=each.done, tokens=tokens, table=each.table)))
            else:
                rows.append((each, row_of(each)))
        plan = Plan(rows=tuple(row for _, row in rows), chunks=tuple(chunk for _, chunk in chunks), **others)
        return plan, [each for each, _ in rows], [each for each, _ in chunks]

    def step(self, chunk_sizes: Sequence[int] = (7, 19, 40), **others: Any) -> Outcome:
        """Compute a step; whoever is complete or has failed leaves."""
        plan, rows, chunks = self.plan(chunk_sizes, **others)
        self.runner.launch(plan)
        outcome = self.runner.collect()
        for place, each in enumerate(rows):
            each.done += 1
            each.failed |= place in outcome.failed_rows
            if not each.failed:
                each.tokens.append(outcome.tokens[place])
        for place, (each, chunk) in enumerate(zip(chunks, plan.chunks, strict=True)):
            each.done += len(chunk.tokens)
            each.failed |= place in outcome.failed_chunks
        self.playing = [each for each in self.playing if len(each.tokens) < each.end and not each.failed]
        return outcome

    def finish(self, chunk_sizes: Sequence[int] = (7, 19, 40)) -> None:
        """Compute until nobody is left."""
        while self.playing:
            self.step(chunk_sizes)


def row_of(playing: Playing) -> Row:
    """The next row of a sequence."""
    return Row(
        sequence=playing.id,
        position=playing.done,
        token=playing.tokens[playing.done],
        table=playing.table,
        sampling=playing.sampling,
        seed=playing.seed,
    )


def full_blocks(num_tokens: int) -> int:
    """How many blocks so many tokens fill."""
    return num_tokens // BLOCK_TOKENS
