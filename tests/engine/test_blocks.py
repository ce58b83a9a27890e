from __future__ import annotations

import random
import time
from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mlxm.engine import blocks
from mlxm.engine.blocks import BlockPool, Chain, num_blocks_for
from mlxm.engine.plan import BLOCK_TOKENS, SCRATCH_BLOCK
from mlxm.errors import InternalError, OutOfMemory
from tests.engine.harness import check_blocks


class Holder:
    """A sequence, as far as blocks are concerned; all its tokens fill whole blocks."""

    def __init__(self, pool: BlockPool, tokens: Sequence[int], scope: bytes = b"") -> None:
        self.pool = pool
        self.tokens = list(tokens)
        self.chain = Chain(scope)
        self.chain.extend(self.tokens, len(self.tokens) // BLOCK_TOKENS)
        self.table: list[int] = []

    def match(self) -> list[int]:
        """The blocks that it could begin with."""
        return self.pool.match(self.chain, len(self.chain.digests))

    def adopt(self) -> Holder:
        """Begin with them."""
        found = self.match()
        self.pool.adopt(self.chain, found)
        self.table += found
        return self

    def compute(self, num_blocks: int = 1_000) -> Holder:
        """Fill blocks, and offer them."""
        while len(self.table) < len(self.chain.digests) and num_blocks:
            self.table.append(self.pool.allocate())
            self.pool.publish(self.chain, self.table[-1])
            num_blocks -= 1
        return self

    def release(self) -> None:
        """Give everything back."""
        self.pool.release(self.table)
        self.table.clear()
        self.chain.links.clear()


def tokens_of(num_blocks: int, start: int = 0) -> list[int]:
    """Tokens for whole blocks."""
    return [start * 1000 + place for place in range(num_blocks * BLOCK_TOKENS)]


@pytest.mark.parametrize(("num_tokens", "num_blocks"), [(0, 0), (1, 1), (31, 1), (32, 1), (33, 2), (64, 2), (65, 3)])
def test_tokens_need_whole_blocks(num_tokens: int, num_blocks: int) -> None:
    """A block begun counts."""
    assert num_blocks == num_blocks_for(num_tokens)


def test_every_block_but_scratch_can_be_had_once() -> None:
    """In rising order, so that a long run lies together; then there are no more."""
    pool = BlockPool(5)
    assert [pool.allocate() for _ in range(4)] == [1, 2, 3, 4]
    assert SCRATCH_BLOCK == 0
    assert (pool.num_total, pool.num_used, pool.num_free, pool.num_cached) == (4, 4, 0, 0)
    with pytest.raises(OutOfMemory, match="All 4 blocks"):
        pool.allocate()


def test_a_released_block_is_the_next_to_be_used() -> None:
    """The free list is a stack, and a table given back comes again in its order."""
    pool = BlockPool(10)
    table = [pool.allocate() for _ in range(4)]
    pool.release(table)
    assert [pool.allocate() for _ in range(4)] == table


def test_a_block_is_not_given_back_twice() -> None:
    """It would have two owners soon."""
    pool = BlockPool(4)
    block = pool.allocate()
    pool.release([block])
    with pytest.raises(InternalError, match="more often than taken"):
        pool.release([block])


def test_only_published_blocks_are_adopted() -> None:
    """What a private block holds is nobody else's."""
    pool = BlockPool(4)
    with pytest.raises(InternalError, match="not published"):
        pool.adopt(Chain(b""), [pool.allocate()])


def test_a_prefix_is_found_while_its_owner_runs_and_afterwards() -> None:
    """As far as the tokens are the same."""
    pool = BlockPool(20)
    owner = Holder(pool, tokens_of(3)).compute()
    fellow = Holder(pool, [*tokens_of(2), *tokens_of(2, 5)]).adopt()
    assert fellow.table == owner.table[:2]
    assert pool.is_shared(owner.table[0])
    assert not pool.is_shared(owner.table[2])
    owner.release()
    assert (pool.num_used, pool.num_cached) == (2, 1)
    later = Holder(pool, tokens_of(3)).adopt()
    assert later.table[:2] == fellow.table
    assert (len(later.table), pool.num_used, pool.num_cached) == (3, 3, 0)
    assert pool.count_owned([*later.table, 17]) == 3


def test_an_adopted_prefix_can_be_continued() -> None:
    """What is computed after it is offered in turn."""
    pool = BlockPool(20)
    Holder(pool, tokens_of(1)).compute()
    longer = Holder(pool, tokens_of(3)).adopt().compute()
    assert Holder(pool, tokens_of(3)).match() == longer.table


def test_equal_blocks_computed_twice_are_offered_once() -> None:
    """The second stays private, but what follows it can be found."""
    pool = BlockPool(20)
    first = Holder(pool, tokens_of(2)).compute(1)
    second = Holder(pool, tokens_of(2))
    second.compute()
    assert Holder(pool, tokens_of(2)).match() == [first.table[0], second.table[1]]
    second.release()
    assert (pool.num_free, pool.num_cached) == (pool.num_total - 2, 1)


@pytest.mark.parametrize(
    ("scope", "tokens"),
    [(b"another model", tokens_of(2)), (b"", tokens_of(2, 3)), (b"", [*tokens_of(1, 3), *tokens_of(2)[BLOCK_TOKENS:]])],
)
def test_scope_and_all_tokens_before_a_block_belong_to_its_name(scope: bytes, tokens: list[int]) -> None:
    """A block is another one when anything differs that its numbers depend on."""
    pool = BlockPool(20)
    Holder(pool, tokens_of(2)).compute()
    assert Holder(pool, tokens, scope).match() == []


def test_a_collision_does_not_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    """When all digests are equal, tokens, scope and the blocks before still decide."""
    monkeypatch.setattr(blocks, "_digest", lambda _previous, _content: b"the same")
    pool = BlockPool(20)
    secret = Holder(pool, tokens_of(1), b"a").compute()
    assert Holder(pool, tokens_of(1), b"a").match() == secret.table
    assert Holder(pool, tokens_of(1, 9), b"a").match() == []
    assert Holder(pool, tokens_of(1), b"b").match() == []
    twice = Holder(pool, tokens_of(1) * 2, b"a").adopt()
    assert twice.table == secret.table


def test_after_a_collision_nothing_wrong_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that could not be offered has no name, and what follows it cannot be taken for something else's."""
    real = blocks._digest
    monkeypatch.setattr(blocks, "_digest", lambda previous, content: real(previous, content[-4:]))
    pool = BlockPool(20)
    beginning, like_it = tokens_of(1), [9, *tokens_of(1)[1:]]
    first = Holder(pool, beginning).compute()
    other = Holder(pool, [*like_it, *tokens_of(1, 7)]).compute()
    assert Holder(pool, [*beginning, *tokens_of(1, 7)]).match() == first.table
    assert Holder(pool, other.tokens).match() == []
    other.release()
    check_blocks(pool, [first.table])


def test_cached_blocks_are_evicted_only_when_none_is_free_and_oldest_first() -> None:
    """Of one sequence the later blocks go before the earlier ones, of several the one released first."""
    pool = BlockPool(7)
    old = Holder(pool, tokens_of(2)).compute()
    new = Holder(pool, tokens_of(2, 1)).compute()
    old_table, new_table = list(old.table), list(new.table)
    old.release()
    new.release()
    assert (pool.num_free, pool.num_cached) == (2, 4)
    assert {pool.allocate(), pool.allocate()}.isdisjoint({*old_table, *new_table})
    assert [pool.allocate() for _ in range(4)] == [old_table[1], old_table[0], new_table[1], new_table[0]]
    assert new.match() == []


def test_use_keeps_a_cached_block_longer() -> None:
    """What was adopted and released again is the newest."""
    pool = BlockPool(3)
    old, new = Holder(pool, tokens_of(1)).compute(), Holder(pool, tokens_of(1, 1)).compute()
    old.release()
    new.release()
    old.adopt().release()
    pool.allocate()
    assert (len(old.match()), len(new.match())) == (1, 0)


def test_forked_blocks_are_freed_by_their_last_owner() -> None:
    """And a fork's chain goes its own way."""
    pool = BlockPool(10)
    parent = Holder(pool, tokens_of(3)).compute(2)
    child = Holder(pool, [*tokens_of(2), *tokens_of(1, 4)])
    child.table, child.chain = pool.fork(parent.table), parent.chain.fork(2)
    child.chain.extend(child.tokens, 3)
    parent.compute()
    child.compute()
    parent.release()
    assert pool.num_used == 3
    child.release()
    assert (pool.num_used, pool.num_cached) == (0, 4)
    assert len(Holder(pool, child.tokens).match()) == 3


def test_soiled_blocks_are_named_once_and_only_if_nobody_can_have_them() -> None:
    """Published ones hold what they should, shared ones belong to others still."""
    pool = BlockPool(10)
    published = Holder(pool, tokens_of(1)).compute().table[0]
    private, shared = pool.allocate(), pool.allocate()
    pool.fork([shared])
    pool.release([published, private, shared], is_soiled=True)
    assert pool.take_soiled() == (private,)
    assert pool.take_soiled() == ()
    pool.soil([5, 4])
    assert pool.take_soiled() == (4, 5)


def test_ten_thousand_random_operations_leak_nothing() -> None:
    """Sequences begin, grow, fork and end; after all of them every block is free or cached."""
    random_ = random.Random(1)
    pool = BlockPool(40)
    holders: list[Holder] = []
    for _ in range(10_000):
        action = random_.random()
        if action < 0.3:
            num_blocks = random_.randint(1, 6)
            holders.append(Holder(pool, [*tokens_of(num_blocks), *tokens_of(2, random_.randint(1, 9))]).adopt())
        elif action < 0.7 and holders and pool.num_available >= 2:
            random_.choice(holders).compute(2)
        elif action < 0.8 and holders:
            parent = random_.choice(holders)
            child = Holder(pool, parent.tokens)
            child.table, child.chain = pool.fork(parent.table), parent.chain.fork(len(parent.table))
            child.chain.extend(child.tokens, len(child.tokens) // BLOCK_TOKENS)
            holders.append(child)
        elif holders:
            holders.pop(random_.randrange(len(holders))).release()
    check_blocks(pool, [holder.table for holder in holders])
    for holder in holders:
        holder.release()
    check_blocks(pool, [])
    assert pool.num_available == pool.num_total


def test_bookkeeping_costs_next_to_nothing() -> None:
    """Blocks and names of 1,024 tokens take some 50 µs and a fork 2 µs; the bounds leave room for a slow machine."""
    prompt = tokens_of(32)
    computing_s, forking_s = [], []
    for _ in range(20):
        began = time.process_time()
        holder = Holder(BlockPool(40), prompt).compute()
        computed = time.process_time()
        holder.pool.fork(holder.table)
        holder.chain.fork(32)
        computing_s.append(computed - began)
        forking_s.append(time.process_time() - computed)
    assert min(computing_s) < 1e-3
    assert min(forking_s) < 150e-6


class BlockStates(RuleBasedStateMachine):
    """Any order of what owners may do."""

    pool: BlockPool | None = None

    @initialize(num_blocks=st.integers(2, 12))
    def begin(self, num_blocks: int) -> None:
        """A small pool."""
        self.pool = BlockPool(num_blocks)
        self.holders: list[Holder] = []

    @rule(shared=st.integers(0, 3), own=st.integers(0, 2), start=st.integers(1, 2), scope=st.sampled_from([b"", b"x"]))
    def come(self, shared: int, own: int, start: int, scope: bytes) -> None:
        """A sequence that may begin like others; what it finds holds its own tokens."""
        holder = Holder(self.pool, [*tokens_of(shared), *tokens_of(own, start)], scope)
        holder.adopt()
        for index, block in enumerate(holder.table):
            entry = self.pool._published_as[block]
            assert entry is not None
            assert entry.content == holder.chain.contents[index]
        self.holders.append(holder)

    @precondition(lambda self: self.holders and self.pool.num_available)
    @rule(data=st.data())
    def compute(self, data: st.DataObject) -> None:
        """One more block."""
        data.draw(st.sampled_from(self.holders)).compute(1)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        """A sequence with the same blocks."""
        parent = data.draw(st.sampled_from(self.holders))
        child = Holder(self.pool, parent.tokens)
        child.table, child.chain = self.pool.fork(parent.table), parent.chain.fork(len(parent.table))
        child.chain.extend(child.tokens, len(child.tokens) // BLOCK_TOKENS)
        self.holders.append(child)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def go(self, data: st.DataObject) -> None:
        """A sequence leaves."""
        holder = data.draw(st.sampled_from(self.holders))
        self.holders.remove(holder)
        holder.release()

    @invariant()
    def is_sound(self) -> None:
        """Every block is free, cached or owned by those in whose tables it is."""
        if self.pool is not None:
            check_blocks(self.pool, [holder.table for holder in self.holders])


TestBlockStates = BlockStates.TestCase
TestBlockStates.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
