"""Who owns which block of the KV pool, and which blocks can serve a prompt that begins like an earlier one.

Every block is free, owned by one or more sequences, or cached: owned by none, but still holding a known prefix.

    free ──allocate──► owned ──release──► free
                        │  ▲
                publish │  │ adopt                    a published block may be owned as well
                        ▼  │
                       cached ──evict──► owned by another
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from itertools import count
from typing import NamedTuple

from mlxm.engine.plan import BLOCK_TOKENS, SCRATCH_BLOCK
from mlxm.errors import InternalError, OutOfMemory

_DIGEST_BYTES = 16
_UINT32 = "I"
_CONTENT_BYTES = BLOCK_TOKENS * array(_UINT32).itemsize


def num_blocks_for(num_tokens: int) -> int:
    """How many blocks hold that many tokens."""
    return -(-num_tokens // BLOCK_TOKENS)


def _digest(previous: bytes, content: bytes) -> bytes:
    return blake2b(previous + content, digest_size=_DIGEST_BYTES).digest()


class Chain:
    """What a sequence's full blocks are known by: each digest covers its block, all before it, and the scope.

    The scope is everything besides the tokens that the numbers in a block depend on: model, tokenizer and template
    revision, adapter, image content, key scope, type and window policy of the cache.
    """

    __slots__ = ("contents", "digests", "links", "scope")

    def __init__(self, scope: bytes) -> None:
        self.scope = scope
        self.digests: list[bytes] = []
        self.contents: list[bytes] = []
        self.links: list[int] = []
        """Numbers of the published blocks that this sequence's first ones are, or equal."""

    def extend(self, tokens: Sequence[int], num_blocks: int) -> None:
        """Compute what is missing of the first `num_blocks` digests."""
        num_known = len(self.digests)
        data = array(_UINT32, tokens[num_known * BLOCK_TOKENS : num_blocks * BLOCK_TOKENS]).tobytes()
        digest = self.digests[-1] if num_known else _digest(b"", self.scope)
        for start in range(0, len(data), _CONTENT_BYTES):
            content = data[start : start + _CONTENT_BYTES]
            digest = _digest(digest, content)
            self.digests.append(digest)
            self.contents.append(content)

    def fork(self, num_blocks: int) -> Chain:
        """The chain of a sequence that begins with the same blocks."""
        other = Chain(self.scope)
        other.digests = self.digests[:num_blocks]
        other.contents = self.contents[:num_blocks]
        other.links = self.links[:num_blocks]
        return other


class _Published(NamedTuple):
    """A full block that may serve other sequences. `link` is its number, `parent` that of the block before it."""

    block: int
    digest: bytes
    content: bytes
    parent: int | bytes
    link: int


class BlockPool:
    """The blocks of one KV pool; scratch is none of them."""

    def __init__(self, num_blocks: int) -> None:
        self.num_total = num_blocks - 1
        self._free = list(range(num_blocks - 1, SCRATCH_BLOCK, -1))
        self._num_owners = [0] * num_blocks
        self._published: dict[bytes, _Published] = {}
        self._published_as: list[_Published | None] = [None] * num_blocks
        self._cached: OrderedDict[int, _Published] = OrderedDict()
        self._soiled: set[int] = set()
        self._links = count()

    @property
    def num_free(self) -> int:
        """Blocks that hold nothing."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Blocks that nobody owns, kept for what they hold until they are needed."""
        return len(self._cached)

    @property
    def num_available(self) -> int:
        """How many can be allocated."""
        return len(self._free) + len(self._cached)

    @property
    def num_used(self) -> int:
        """Blocks that somebody owns."""
        return self.num_total - self.num_available

    def is_shared(self, block: int) -> bool:
        """Whether a block has more than one owner, so that nobody may write to it."""
        return self._num_owners[block] > 1

    def count_owned(self, blocks: Iterable[int]) -> int:
        """How many of the blocks somebody owns already."""
        return sum(self._num_owners[block] > 0 for block in blocks)

    def allocate(self) -> int:
        """A block for one owner: a free one, else the cached one that was not needed for longest."""
        if self._free:
            block = self._free.pop()
        elif self._cached:
            block, entry = self._cached.popitem(last=False)
            del self._published[entry.digest]
            self._published_as[block] = None
        else:
            raise OutOfMemory(f"All {self.num_total} blocks of the KV pool are in use.", hint="Send fewer at once.")
        self._num_owners[block] = 1
        return block

    def fork(self, blocks: Iterable[int]) -> list[int]:
        """The same blocks for one more owner."""
        shared = list(blocks)
        for block in shared:
            self._num_owners[block] += 1
        return shared

    def release(self, blocks: Sequence[int], *, is_soiled: bool = False) -> None:
        """Give up one ownership of each; of a sequence's cached blocks the last will be evicted first.

        Of soiled blocks nobody knows what they hold: unless published before, they are to be wiped.
        """
        owners = self._num_owners
        for block in reversed(blocks):
            if owners[block] < 1:
                raise InternalError(f"Block {block} was given back more often than taken.")
            owners[block] -= 1
            if owners[block]:
                continue
            entry = self._published_as[block]
            if entry is not None:
                self._cached[block] = entry
                continue
            self._free.append(block)
            if is_soiled:
                self._soiled.add(block)

    def soil(self, blocks: Iterable[int]) -> None:
        """Note that blocks are still to be wiped."""
        self._soiled.update(blocks)

    def take_soiled(self) -> tuple[int, ...]:
        """The blocks to be wiped before the next step writes; asked for once."""
        soiled = tuple(sorted(self._soiled))
        self._soiled.clear()
        return soiled

    def match(self, chain: Chain, num_blocks: int) -> list[int]:
        """The published blocks that continue the chain's links, up to block `num_blocks`; the tokens are compared."""
        found: list[int] = []
        parent: int | bytes = chain.links[-1] if chain.links else chain.scope
        for index in range(len(chain.links), num_blocks):
            entry = self._published.get(chain.digests[index])
            if entry is None or entry.content != chain.contents[index] or entry.parent != parent:
                break
            found.append(entry.block)
            parent = entry.link
        return found

    def adopt(self, chain: Chain, blocks: Iterable[int]) -> None:
        """Take matched blocks for one more owner, whose chain they continue."""
        for block in blocks:
            entry = self._published_as[block]
            if entry is None:
                raise InternalError(f"Block {block} is not published.")
            if self._num_owners[block] == 0:
                del self._cached[block]
            self._num_owners[block] += 1
            chain.links.append(entry.link)

    def publish(self, chain: Chain, block: int) -> None:
        """Offer the block after the chain's last link, which is full and computed.

        An equal block that was offered before stands for it; where only the digest is equal it stays private.
        """
        index = len(chain.links)
        parent: int | bytes = chain.links[-1] if index else chain.scope
        digest, content = chain.digests[index], chain.contents[index]
        entry = self._published.get(digest)
        if entry is None:
            entry = _Published(block, digest, content, parent, next(self._links))
            self._published[digest] = self._published_as[block] = entry
        is_same = entry.content == content and entry.parent == parent
        chain.links.append(entry.link if is_same else next(self._links))
