"""Which sequences take part in the next step, with how many tokens, and who gives way when memory ends.

There are no phases: in every step each running sequence catches up with the tokens that are known of it, first by
chunks, then by a row per token. Sequences rank by priority, then arrival. That one sequence alone always fits is
checked when it comes; so the first in rank can always go on, and nothing ever waits for itself.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable

import msgspec

from mlxm.engine.blocks import BlockPool, num_blocks_for
from mlxm.engine.draft import Draft, Flight
from mlxm.engine.pace import Pace, PaceOptions
from mlxm.engine.plan import BLOCK_TOKENS, RunnerFacts
from mlxm.engine.queue import WaitingQueue
from mlxm.engine.sequence import Sequence

_WATERMARK = 0.01
"""The part of the pool that no newcomer is promised, so that those who run can grow."""
_SHORT_PROMPT = 0.25
"""The part of a step's prompt tokens up to which a prompt is so short that first tokens wait for it."""
_MAX_HELD_STEPS = 4
_SCORED_ROWS = 32
"""Rows of a step for prompts whose logprobs are wanted."""


class SchedulerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a scheduler plans."""

    pace: PaceOptions = PaceOptions()
    expected_tokens: int = 256
    """How long an answer is thought to become, when room is kept for it."""


class Scheduler:
    """Owns the blocks, the queue and the running sequences; `forget` tells the runner that one has left."""

    def __init__(self, facts: RunnerFacts, options: SchedulerOptions, forget: Callable[[int], None]) -> None:
        self._facts = facts
        self._options = options
        self._forget = forget
        self._held_steps = 0
        self.pool = BlockPool(facts.num_blocks)
        self.pace = Pace(options.pace)
        self.queue = WaitingQueue()
        self.running: list[Sequence] = []
        """By rank."""
        self.num_preemptions = 0

    # ── coming and going ─────────────────────────────────────────────────────────────────────────

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait for room."""
        sequence.state = "waiting"
        self.queue.push(sequence)

    def admit(self) -> list[Sequence]:
        """Let in those whose turn it is while there is room for what they are thought to need; nobody is overtaken."""
        admitted = []
        while self.queue and len(self.running) < self._facts.max_rows:
            sequence = self.queue.first()
            found = self._find(sequence)
            if self.running and not self._has_room_for(sequence, found):
                break
            self._begin(self.queue.pop(), found)
            admitted.append(sequence)
        return admitted

    def end(self, sequence: Sequence) -> None:
        """Free at once all that a sequence holds."""
        if sequence.state == "waiting":
            self.queue.remove(sequence)
        elif sequence.state == "running":
            self._leave(sequence)
        sequence.state = "over"

    # ── planning ─────────────────────────────────────────────────────────────────────────────────

    def plan(self, in_flight: Flight | None, members: list[Sequence] | None = None) -> Flight | None:
        """Order the next step, of `members` alone if given; None when there is none before `in_flight` is collected.

        Nobody is preempted while a step is in flight: its end may free what is missing.
        """
        self._fork_siblings()
        while True:
            running = [sequence for sequence in members or self.running if sequence.state == "running"]
            flight = self._compose(running, in_flight)
            if flight is not None or in_flight is not None or not running:
                return flight
            self._preempt(self.running[-1])

    def _compose(self, running: list[Sequence], in_flight: Flight | None) -> Flight | None:
        for sequence in running:
            self._adopt(sequence)
        rows = [sequence for sequence in running if sequence.wants_row]
        prompts = [sequence for sequence in running if sequence.num_behind > 0]
        if self._holds(rows, prompts):
            rows = []
        if sum(map(self._needs_block, rows)) > self.pool.num_available:
            return None
        draft = Draft(self.pool, in_flight)
        num_scoring = sum(sequence.is_scoring for sequence in rows)
        max_run = max(1, _SCORED_ROWS // max(1, num_scoring)) if self._facts.takes_runs else 1
        for sequence in rows:
            draft.add_rows(sequence, max_run)
        self._add_chunks(draft, prompts, self.pace.chunk_tokens(num_rows=len(rows), num_prompts=len(prompts)))
        return draft.launch()

    def _add_chunks(self, draft: Draft, prompts: list[Sequence], max_tokens: int) -> None:
        """Half of the tokens go to the first in rank, the others to the shortest rest, and what is left to the first.

        The short ones do not wait for a long one in front of them, and no stream of short ones starves it.
        """
        first = next((sequence for sequence in prompts if not draft.is_promised(sequence)), None)
        if first is None:
            return
        smallest = self._options.pace.min_chunk_tokens
        left = max_tokens - draft.add_chunk(first, max_tokens // 2 if max_tokens >= 2 * smallest else max_tokens)
        for sequence in sorted(prompts, key=lambda sequence: (sequence.priority, sequence.num_behind)):
            is_worth_it = left >= min(smallest, sequence.num_behind)
            if is_worth_it and sequence is not first and not draft.is_promised(sequence):
                left -= draft.add_chunk(sequence, left)
        draft.add_chunk(first, left)

    def _holds(self, rows: list[Sequence], prompts: list[Sequence]) -> bool:
        """Whether first tokens wait a few steps, so that short prompts that came together also answer together.

        A step costs nearly the same for one row as for many; as long as nobody reads, filling it first is faster
        for nearly all.
        """
        longest = max((sequence.num_behind for sequence in prompts), default=0)
        holds = (
            0 < longest <= self._options.pace.max_chunk_tokens * _SHORT_PROMPT
            and self._held_steps < _MAX_HELD_STEPS
            and not any(sequence.is_streaming for sequence in self.running)
            and max(sequence.priority for sequence in prompts) <= min((row.priority for row in rows), default=0)
        )
        self._held_steps = self._held_steps + 1 if holds and rows else 0
        return holds

    # ── what became of a step ────────────────────────────────────────────────────────────────────

    def computed(self, sequence: Sequence, end: int) -> int:
        """A sequence is computed up to `end`: offer its full blocks; the prompt tokens that were thus really reused."""
        sequence.num_computed = end
        if self._facts.shares_prefixes and end // BLOCK_TOKENS > len(sequence.chain.links):
            sequence.chain.extend(sequence.tokens, end // BLOCK_TOKENS)
            while len(sequence.chain.links) < end // BLOCK_TOKENS:
                self.pool.publish(sequence.chain, sequence.table[len(sequence.chain.links)])
        num_reused, sequence.num_found = sequence.num_found, 0
        return num_reused

    def take_back(self, flight: Flight) -> None:
        """A step was lost: what it may have half written is wiped, and computed again from the last full block on."""
        self.pool.soil(flight.plan.wipes)
        for sequence in flight.sequences:
            if sequence.state != "running":
                continue
            num_kept = len(sequence.chain.links)
            self.pool.release(sequence.table[num_kept:], is_soiled=True)
            del sequence.table[num_kept:]
            sequence.num_launched = sequence.num_computed = num_kept * BLOCK_TOKENS
            self._forget(sequence.id)

    # ── memory ───────────────────────────────────────────────────────────────────────────────────

    def count_unused_slots(self) -> int:
        """Token places in owned blocks that no token has; a block with several owners counts once."""
        unused: dict[int, int] = {}
        for sequence in self.running:
            for index in range(sequence.num_launched // BLOCK_TOKENS, len(sequence.table)):
                block = sequence.table[index]
                places = min(BLOCK_TOKENS, (index + 1) * BLOCK_TOKENS - sequence.num_launched)
                unused[block] = min(places, unused.get(block, BLOCK_TOKENS))
        return sum(unused.values())

    def _needs_block(self, sequence: Sequence) -> bool:
        index = sequence.num_launched // BLOCK_TOKENS
        return index == len(sequence.table) or self.pool.is_shared(sequence.table[index])

    def _expected_blocks(self, sequence: Sequence) -> int:
        expected = max(sequence.prompt_length + self._options.expected_tokens, len(sequence.tokens) + BLOCK_TOKENS)
        return num_blocks_for(min(sequence.end, expected))

    def _has_room_for(self, sequence: Sequence, shared: list[int]) -> bool:
        """Whether the pool can hold it beside all that is running, as far as they are thought to grow."""
        growth = sum(max(0, self._expected_blocks(other) - len(other.table)) for other in self.running)
        needed = self._expected_blocks(sequence) - self.pool.count_owned(shared)
        watermark = max(1, round(self.pool.num_total * _WATERMARK))
        return needed + growth + watermark <= self.pool.num_available

    def _has_place_for(self, sequence: Sequence, shared: list[int]) -> bool:
        return len(self.running) < self._facts.max_rows and self._has_room_for(sequence, shared)

    def _preempt(self, sequence: Sequence) -> None:
        """Send a sequence back to the queue; its full blocks stay as a prefix while nobody needs them."""
        self._leave(sequence)
        sequence.num_launched = sequence.num_computed = sequence.num_found = 0
        sequence.num_preempted += 1
        sequence.chain.links.clear()
        self.num_preemptions += 1
        self.add(sequence)

    def _leave(self, sequence: Sequence) -> None:
        """What is ordered and not collected may be written yet, and not finite: those blocks are to be wiped."""
        self.running.remove(sequence)
        num_kept = sequence.num_computed // BLOCK_TOKENS
        self.pool.release(sequence.table[num_kept:], is_soiled=sequence.num_launched > sequence.num_computed)
        self.pool.release(sequence.table[:num_kept])
        sequence.table.clear()
        self._forget(sequence.id)

    # ── prefixes ─────────────────────────────────────────────────────────────────────────────────

    def _find(self, sequence: Sequence) -> list[int]:
        """The blocks that others have computed for a beginning of the sequence; its last token always has to run."""
        if sequence.is_scoring or not self._facts.shares_prefixes:
            return []
        num_blocks = (len(sequence.tokens) - 1) // BLOCK_TOKENS
        sequence.chain.extend(sequence.tokens, num_blocks)
        return self.pool.match(sequence.chain, num_blocks)

    def _begin(self, sequence: Sequence, found: list[int]) -> None:
        sequence.state = "running"
        insort(self.running, sequence, key=lambda sequence: sequence.rank)
        self._take(sequence, found)

    def _adopt(self, sequence: Sequence) -> None:
        """Take blocks that another sequence has filled since; only at a full block with nothing in flight."""
        position = sequence.num_launched
        if sequence.num_behind > 0 and position == sequence.num_computed and position % BLOCK_TOKENS == 0:
            found = self._find(sequence)
            if found:
                self._forget(sequence.id)
                self._take(sequence, found)

    def _take(self, sequence: Sequence, blocks: list[int]) -> None:
        self.pool.adopt(sequence.chain, blocks)
        sequence.table.extend(blocks)
        num_tokens = len(blocks) * BLOCK_TOKENS
        sequence.num_launched += num_tokens
        sequence.num_computed += num_tokens
        if sequence.num_preempted == 0:
            sequence.num_found += num_tokens

    def _fork_siblings(self) -> None:
        """Let the choices of a request whose prompt is computed share its blocks; those without room wait for it."""
        for leader in [sequence for sequence in self.running if sequence.siblings]:
            num_shared = leader.prompt_length - 1
            if leader.num_computed < num_shared:
                continue
            shared = leader.table[: num_blocks_for(num_shared)]
            siblings, leader.siblings = leader.siblings, []
            for sibling in siblings:
                if self._facts.shares_prefixes and self._has_place_for(sibling, shared):
                    sibling.table = self.pool.fork(shared)
                    sibling.chain = leader.chain.fork(num_shared // BLOCK_TOKENS)
                    sibling.num_launched = sibling.num_computed = num_shared
                    self._begin(sibling, [])
                else:
                    self.add(sibling)
