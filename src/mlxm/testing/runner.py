"""A runner without a model, for tests of the engine: it keeps in its blocks what was written, and reads it back.

The next token is a function of the tokens that it finds by the table. So a block that was reused too early, shared
wrongly or not copied shows as a wrong token, and a plan that breaks the contract raises IllegalPlan.
"""

from __future__ import annotations

from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple
from zlib import crc32

import msgspec

from mlxm.engine.plan import BLOCK_TOKENS, SCRATCH_BLOCK, Chunk, Outcome, Plan, Row, RowLogprobs, RunnerFacts

NextToken = Callable[[Sequence[int], int], int]
"""The token after some tokens, given a seed."""

_EMPTY = -1
_RANKED = 32
_NUM_SCRIPTED = 256
_BROKEN = -2
"""Numbers that are not finite: what reads them becomes so too, also where a weight of zero should mask them."""


class IllegalPlan(BaseException):
    """The plan breaks the contract. No Exception, so that it is not taken for the failure of a sequence."""


class ManualClock:
    """A clock that goes when it is told to."""

    def __init__(self, now_s: float = 0.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        """What it shows."""
        return self.now_s


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """The seconds that a step takes."""

    chunks_s: float = 0.0
    chunk_token_s: float = 0.0
    rows_s: float = 0.0
    row_s: float = 0.0


class Faults(msgspec.Struct, kw_only=True):
    """What goes wrong, at every stage; may be changed between steps.

    `launch` and `collect` raise what they like; `row` and `chunk` say whether numbers are not finite.
    """

    launch: Callable[[Plan], object] = lambda _plan: None
    collect: Callable[[Plan], object] = lambda _plan: None
    row: Callable[[Row], bool] = lambda _row: False
    chunk: Callable[[Chunk], bool] = lambda _chunk: False


class Tally(msgspec.Struct, kw_only=True):
    """What a runner has been asked to do."""

    num_launched: int = 0
    num_collected: int = 0
    num_rows: int = 0
    num_chunk_tokens: int = 0
    num_copies: int = 0
    num_wipes: int = 0
    max_rows: int = 0


class _Answered(NamedTuple):
    token: int
    after: list[int]


class _Launched(NamedTuple):
    plan: Plan
    outcome: Outcome


def scripted_token(tokens: Sequence[int], seed: int) -> int:
    """A token below 256 that depends on every token before it, their order and the seed."""
    return crc32(array("Q", (*tokens, seed)).tobytes()) % _NUM_SCRIPTED


def facts_of(
    *,
    num_blocks: int = 65,
    max_rows: int = 8,
    shares_prefixes: bool = True,
    runs_ahead: bool = False,
    takes_runs: bool = True,
) -> RunnerFacts:
    """The facts of a scripted runner."""
    return RunnerFacts(
        kind="scripted",
        why="there is no model",
        num_blocks=num_blocks,
        max_rows=max_rows,
        shares_prefixes=shares_prefixes,
        runs_ahead=runs_ahead,
        block_bytes=1,
        takes_runs=takes_runs,
    )


def scripted_logprob(tokens: Sequence[int], token_id: int) -> float:
    """A logprob that depends on every token before, and on the token itself."""
    return -1 - crc32(array("Q", (*tokens, token_id)).tobytes()) % 1000 / 64


def scripted_logprobs(tokens: Sequence[int], token_id: int, num_top: int) -> RowLogprobs:
    """What a row says of its token; the likeliest are sought among the first ones of the vocabulary only."""
    ranked = sorted(((other, scripted_logprob(tokens, other)) for other in range(_RANKED)), key=lambda pair: -pair[1])
    return RowLogprobs(scripted_logprob(tokens, token_id), tuple(ranked[:num_top]))


@lru_cache(maxsize=1024)
def allowed_ids(mask: bytes) -> tuple[int, ...]:
    """The tokens that a mask lets through."""
    bits = int.from_bytes(mask, "little")
    return tuple(place for place in range(bits.bit_length()) if bits >> place & 1)


class ScriptedRunner:
    """Answers plans from what it remembers; `clock`, if given, is moved on by what `costs` says."""

    def __init__(
        self,
        facts: RunnerFacts,
        *,
        next_token: NextToken = scripted_token,
        costs: Costs | None = None,
        clock: ManualClock | None = None,
    ) -> None:
        self.facts = facts
        self.faults = Faults()
        self.tally = Tally()
        self.plans: list[Plan] = []
        self._next_token = next_token
        self._costs = Costs() if costs is None else costs
        self._clock = ManualClock() if clock is None else clock
        self._slots = [[_EMPTY] * BLOCK_TOKENS for _ in range(facts.num_blocks)]
        self._prefixes: list[tuple[int, int]] = []
        """Each prefix that was ever written, as the number of the one before it and its last token."""
        self._numbers: dict[tuple[int, int], int] = {}
        self._tables: dict[int, tuple[int, ...]] = {}
        self._lengths: dict[int, int] = {}
        self._sampled: dict[int, tuple[int, int]] = {}
        """By sequence: the position of its last row, and the token that followed."""
        self._launched: deque[_Launched] = deque()

    def launch(self, plan: Plan) -> None:
        """Check a plan and carry it out."""
        self._check(plan)
        self.plans.append(plan)
        self._count(plan)
        for block in plan.wipes:
            self._slots[block] = [_EMPTY] * BLOCK_TOKENS
        for source, target in plan.copies:
            self._slots[target] = list(self._slots[source])
        try:
            self.faults.launch(plan)
        except BaseException:
            self._break_all(plan)
            raise
        failed_chunks = tuple(index for index, chunk in enumerate(plan.chunks) if not self._prefill(chunk))
        answers = [self._decode(row) for row in plan.rows]
        costs = self._costs
        outcome = Outcome(
            tokens=tuple(0 if answer is None else answer.token for answer in answers),
            logprobs=_logprobs(plan.rows, answers),
            failed_rows=tuple(index for index, answer in enumerate(answers) if answer is None),
            failed_chunks=failed_chunks,
            chunks_s=costs.chunks_s + costs.chunk_token_s * _num_chunk_tokens(plan) if plan.chunks else 0.0,
            rows_s=costs.rows_s + costs.row_s * len(plan.rows) if plan.rows else 0.0,
        )
        self._launched.append(_Launched(plan, outcome))

    def collect(self) -> Outcome:
        """The outcome of the oldest plan that was launched and not collected."""
        if not self._launched:
            raise IllegalPlan("There is nothing to collect.")
        plan, outcome = self._launched[0]
        try:
            self.faults.collect(plan)
        except BaseException:
            for step in self._launched:
                self._break_all(step.plan)
            self._launched.clear()
            raise
        self._launched.popleft()
        self.tally.num_collected += 1
        self._clock.now_s += outcome.chunks_s + outcome.rows_s
        return outcome

    def forget(self, sequence: int) -> None:
        """Drop what is known of a sequence."""
        self._tables.pop(sequence, None)
        self._lengths.pop(sequence, None)
        self._sampled.pop(sequence, None)

    @property
    def num_known(self) -> int:
        """How many sequences were not forgotten."""
        return len(self._tables)

    # ── what a plan must keep to ─────────────────────────────────────────────────────────────────

    def _check(self, plan: Plan) -> None:
        works = _works(plan)
        _require(len(works) > 0, "an empty plan")
        rows = {row.sequence for row in plan.rows}
        num_expected = len(works) if not self.facts.takes_runs else len(rows) + len(plan.chunks)
        _require(len(rows) <= self.facts.max_rows, "more rows than the runner has")
        _require(len({work.sequence for work in works}) == num_expected, "a sequence is there twice")
        owned = {block for table in self._tables.values() for block in table}
        _require(owned.isdisjoint(plan.wipes), "a block is wiped that a sequence has")
        for row in plan.rows:
            _check_known(row)
        for work in works:
            self._check_table(work)
            self._tables[work.sequence] = tuple(work.table)
        owners = Counter(block for table in self._tables.values() for block in table)
        for _, target in plan.copies:
            _require(owners[target] == 1, "a copy into a block that is not one sequence's own")
        for work in works:
            for block, _ in _places(work):
                _require(owners[block] == 1, f"sequence {work.sequence} writes to block {block}, which is shared")

    def _check_table(self, work: Row | Chunk) -> None:
        sequence, (start, end) = work.sequence, _span(work)
        _require(end > start, "an empty chunk")
        _require(len(work.table) * BLOCK_TOKENS >= end, f"the table of sequence {sequence} is too short")
        _require(len(set(work.table)) == len(work.table), f"the table of sequence {sequence} has a block twice")
        _require(SCRATCH_BLOCK not in work.table, f"sequence {sequence} owns the scratch block")
        begins_at = 0 if not self.facts.shares_prefixes else start
        known = self._lengths.get(sequence, begins_at)
        _require(known == start, f"sequence {sequence} goes on at {start}, not at {known}")
        self._lengths[sequence] = end

    # ── what it computes ─────────────────────────────────────────────────────────────────────────

    def _prefill(self, chunk: Chunk) -> bool:
        """Write a chunk; False when its numbers are not finite."""
        is_fine = not self.faults.chunk(chunk)
        return self._compute(chunk, chunk.start, chunk.tokens, is_fine=is_fine) is not None

    def _decode(self, row: Row) -> _Answered | None:
        """Write a row and choose what follows; None when its numbers are not finite."""
        sampled_at, sampled = self._sampled.get(row.sequence, (_EMPTY - 1, _EMPTY))
        token = row.token
        if token is None:
            _require(sampled_at == row.position - 1, f"sequence {row.sequence} has no token at {row.position} yet")
            token = sampled
        elif sampled_at == row.position - 1:
            _require(token == sampled, f"sequence {row.sequence} goes on with another token than was sampled")
        tokens = self._compute(row, row.position, (token,), is_fine=not self.faults.row(row))
        answer = None if tokens is None else _Answered(self._choose(row, tokens), tokens)
        self._sampled.pop(row.sequence, None)
        if row.target is None:
            self._sampled[row.sequence] = (row.position, 0 if answer is None else answer.token)
        return answer

    def _choose(self, row: Row, tokens: Sequence[int]) -> int:
        """The next token, or where that may not be chosen, another one that the same chance decides."""
        following = self._next_token(tokens, row.seed)
        candidates = range(_NUM_SCRIPTED) if row.mask is None else allowed_ids(row.mask)
        if following not in row.banned_ids and (row.mask is None or following in candidates):
            return following
        allowed = [token for token in candidates if token not in row.banned_ids]
        _require(len(allowed) > 0, f"sequence {row.sequence} may choose no token at all")
        return allowed[crc32(array("Q", (*tokens, row.seed)).tobytes()) % len(allowed)]

    def _compute(self, work: Row | Chunk, start: int, tokens: Sequence[int], *, is_fine: bool) -> list[int] | None:
        """Write tokens, and read all up to them; None when the numbers are not finite."""
        self._write(work.table, start, tokens)
        found = self._read(work.table, start + len(tokens), work.sequence) if is_fine else None
        if found is None:
            self._break(work)
        return found

    def _read(self, table: Sequence[int], length: int, sequence: int) -> list[int] | None:
        """The tokens found at the first positions; None when what is read with them is not finite."""
        tokens: list[int] = []
        before = _EMPTY
        for number in self._held(table, length):
            if number == _BROKEN:
                return None
            if len(tokens) < length:
                is_next = number >= 0 and self._prefixes[number][0] == before
                _require(is_next, f"position {len(tokens)} of sequence {sequence} holds what belongs elsewhere")
                tokens.append(self._prefixes[number][1])
                before = number
        return tokens

    def _held(self, table: Sequence[int], length: int) -> Iterator[int]:
        for block in table[: -(-length // BLOCK_TOKENS)]:
            yield from self._slots[block]

    def _write(self, table: Sequence[int], start: int, tokens: Sequence[int]) -> None:
        before = _EMPTY
        if start:
            before = self._slots[table[(start - 1) // BLOCK_TOKENS]][(start - 1) % BLOCK_TOKENS]
        for position, token in enumerate(tokens, start):
            prefix = (before, token)
            if prefix not in self._numbers:
                self._numbers[prefix] = len(self._prefixes)
                self._prefixes.append(prefix)
            before = self._numbers[prefix]
            self._slots[table[position // BLOCK_TOKENS]][position % BLOCK_TOKENS] = before

    def _break(self, work: Row | Chunk) -> None:
        for block, offset in _places(work):
            self._slots[block][offset] = _BROKEN

    def _break_all(self, plan: Plan) -> None:
        """Leave a plan half written, in the worst way."""
        for work in _works(plan):
            self._break(work)

    def _count(self, plan: Plan) -> None:
        tally = self.tally
        tally.num_launched += 1
        tally.num_rows += len(plan.rows)
        tally.num_chunk_tokens += _num_chunk_tokens(plan)
        tally.num_copies += len(plan.copies)
        tally.num_wipes += len(plan.wipes)
        tally.max_rows = max(tally.max_rows, len(plan.rows))


def _check_known(row: Row) -> None:
    """What a row says of its sequence's tokens is true, and known where it matters."""
    sampling = row.sampling
    is_penalised = sampling.presence_penalty or sampling.frequency_penalty
    is_penalised = is_penalised or sampling.repetition_penalty not in {None, 1.0}
    if row.token is None:
        _require(row.mask is None and not is_penalised, f"sequence {row.sequence} runs ahead of what it must know")
        return
    if not row.tokens:
        return
    _require(row.tokens[row.position] == row.token, f"sequence {row.sequence} has another token than its row")
    if row.target is not None:
        _require(row.position + 1 < row.num_prompt, f"sequence {row.sequence} has no prompt at {row.position + 1}")
        _require(row.tokens[row.position + 1] == row.target, f"sequence {row.sequence} goes on with another token")


def _logprobs(rows: Sequence[Row], answers: Sequence[_Answered | None]) -> tuple[RowLogprobs | None, ...]:
    if all(row.num_logprobs is None for row in rows):
        return ()
    return tuple(
        None
        if answer is None or row.num_logprobs is None
        else scripted_logprobs(answer.after, answer.token if row.target is None else row.target, row.num_logprobs)
        for row, answer in zip(rows, answers, strict=True)
    )


def _works(plan: Plan) -> list[Row | Chunk]:
    return [*plan.rows, *plan.chunks]


def _span(work: Row | Chunk) -> tuple[int, int]:
    if isinstance(work, Row):
        return work.position, work.position + 1
    return work.start, work.start + len(work.tokens)


def _places(work: Row | Chunk) -> Iterator[tuple[int, int]]:
    """The blocks and offsets that are written."""
    for position in range(*_span(work)):
        yield work.table[position // BLOCK_TOKENS], position % BLOCK_TOKENS


def _num_chunk_tokens(plan: Plan) -> int:
    return sum(len(chunk.tokens) for chunk in plan.chunks)


def _require(is_true: bool, complaint: str) -> None:  # noqa: FBT001  (reads as a sentence)
    if not is_true:
        raise IllegalPlan(complaint)
