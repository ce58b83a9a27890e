"""A step while it is put together, and what the engine keeps of it until its outcome is known."""

from __future__ import annotations

import msgspec

from mlxm.engine.blocks import BlockPool
from mlxm.engine.plan import BLOCK_TOKENS, Chunk, Plan, Row
from mlxm.engine.sequence import Sequence
from mlxm.types import Sampling

_GREEDY = Sampling(temperature=0.0)


class Flight(msgspec.Struct, frozen=True, kw_only=True):
    """A step on its way: its plan, and whose rows and chunks those are, in the plan's order."""

    plan: Plan
    rows: tuple[Sequence, ...]
    chunks: tuple[Sequence, ...]
    promised: frozenset[bytes]
    """Digests of the blocks that its chunks fill."""

    @property
    def sequences(self) -> tuple[Sequence, ...]:
        """All that take part."""
        return (*self.rows, *self.chunks)

    @property
    def num_chunk_tokens(self) -> int:
        """Prompt tokens that it computes."""
        return sum(len(chunk.tokens) for chunk in self.plan.chunks)


class Draft:
    """Collects rows and chunks, with the blocks that they write to; sequences stay as they are until `launch`."""

    def __init__(self, pool: BlockPool, in_flight: Flight | None) -> None:
        self._pool = pool
        self._rows: list[Sequence] = []
        self._chunks: dict[Sequence, int] = {}
        self._copies: list[tuple[int, int]] = []
        self._promised: set[bytes] = set()
        self._promised_before = frozenset[bytes]() if in_flight is None else in_flight.promised

    def add_rows(self, sequence: Sequence, max_rows: int) -> None:
        """Give a sequence its next token, or the next ones known; the one block that this needs must be available."""
        self._make_writable(sequence)
        num_rows = min(sequence.num_known_rows, max_rows, BLOCK_TOKENS - sequence.num_launched % BLOCK_TOKENS)
        self._rows += [sequence] * num_rows

    def add_chunk(self, sequence: Sequence, max_tokens: int) -> int:
        """Compute more of a prompt, as far as the limit and the blocks reach; how many tokens that is."""
        size = self._chunks.get(sequence, 0)
        start = sequence.num_launched + size
        room = (len(sequence.table) + self._pool.num_available) * BLOCK_TOKENS - start
        more = min(max_tokens, sequence.num_behind - size, room)
        if more <= 0:
            return 0
        while len(sequence.table) * BLOCK_TOKENS < start + more:
            sequence.table.append(self._pool.allocate())
        self._chunks[sequence] = size + more
        self._promised.update(sequence.chain.digests[start // BLOCK_TOKENS : -(-(start + more) // BLOCK_TOKENS)])
        return more

    def is_promised(self, sequence: Sequence) -> bool:
        """Whether the block that a sequence would begin next is just being computed for another one."""
        index, offset = divmod(sequence.num_launched, BLOCK_TOKENS)
        digests = sequence.chain.digests
        if offset or index >= len(digests):
            return False
        return digests[index] in self._promised or digests[index] in self._promised_before

    def launch(self) -> Flight | None:
        """The finished step, ordered from now on; None when there is nothing to do."""
        if not self._rows and not self._chunks:
            return None
        rows = []
        for sequence in self._rows:
            rows.append(_row(sequence))
            sequence.num_launched += 1
        plan = Plan(
            rows=tuple(rows),
            chunks=tuple(_chunk(sequence, size) for sequence, size in self._chunks.items()),
            copies=tuple(self._copies),
            wipes=self._pool.take_soiled(),
        )
        for sequence, size in self._chunks.items():
            sequence.num_launched += size
        return Flight(plan=plan, rows=tuple(self._rows), chunks=tuple(self._chunks), promised=frozenset(self._promised))

    def _make_writable(self, sequence: Sequence) -> None:
        index = sequence.num_launched // BLOCK_TOKENS
        if index == len(sequence.table):
            sequence.table.append(self._pool.allocate())
        elif self._pool.is_shared(sequence.table[index]):
            source, target = sequence.table[index], self._pool.allocate()
            self._copies.append((source, target))
            self._pool.release([source])
            sequence.table[index] = target


def _row(sequence: Sequence) -> Row:
    position = sequence.num_launched
    num_answered = position + 1 - sequence.prompt_length
    if num_answered < 0:
        return _scored_row(sequence)
    mask = None if sequence.guide is None else sequence.guide.mask
    is_short = mask is None and num_answered < sequence.sampling.min_tokens  # a grammar's end is nobody's to forbid
    return Row(
        sequence=sequence.id,
        position=position,
        token=sequence.tokens[position] if position < len(sequence.tokens) else None,
        table=tuple(sequence.table),
        sampling=sequence.sampling,
        seed=sequence.seed,
        tokens=sequence.tokens,
        num_prompt=sequence.prompt_length,
        mask=mask,
        banned_ids=sequence.stop_ids if is_short else (),
        num_logprobs=sequence.num_logprobs,
    )


def _scored_row(sequence: Sequence) -> Row:
    """A row for the logprob of the prompt's next token; what would be chosen instead does not matter."""
    position = sequence.num_launched
    return Row(
        sequence=sequence.id,
        position=position,
        token=sequence.tokens[position],
        table=tuple(sequence.table),
        sampling=_GREEDY,
        tokens=sequence.tokens,
        num_prompt=sequence.prompt_length,
        num_logprobs=0 if sequence.num_logprobs is None else sequence.num_logprobs,
        target=sequence.tokens[position + 1],
    )


def _chunk(sequence: Sequence, size: int) -> Chunk:
    start = sequence.num_launched
    tokens = tuple(sequence.tokens[start : start + size])
    return Chunk(sequence=sequence.id, start=start, tokens=tokens, table=tuple(sequence.table))
