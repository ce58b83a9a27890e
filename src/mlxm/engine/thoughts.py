"""Ends thoughts that have become as long as they may be: from then on, the tokens that close them are the only choice.

It is a guide like that of a grammar, and goes together with one.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Callable
from typing import Protocol

from mlxm.engine.output import Pattern
from mlxm.frames import ThoughtLimit

_WHITESPACE = b" \t\r\n"
_WORD_BITS = 32
_WORD_BYTES = 4


class Guide(Protocol):
    """Says for each step of one sequence which tokens may come next."""

    @property
    def mask(self) -> bytes | None:
        """What may come next, a bit for each token; None means anything."""
        ...

    def accept(self, token_id: int) -> bool:
        """Follow one more token of the answer; whether the answer is complete with it."""
        ...

    def refresh(self) -> None:
        """Compute what may come next; raises InvalidRequest where that costs more than it may."""
        ...


class BoundedThoughts:
    """One answer's thoughts, in a sequence that `inner` guides besides."""

    def __init__(
        self, limit: ThoughtLimit, *, raw: Callable[[int], bytes], vocab_size: int, inner: Guide | None = None
    ) -> None:
        self._limit = limit
        self._raw = raw
        self._mask_bytes = -(-vocab_size // _WORD_BITS) * _WORD_BYTES
        self._inner = inner
        self._opener = Pattern(limit.opener.encode())
        self._closer = Pattern(limit.closer.encode())
        self._characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._is_open = limit.is_open
        self._is_over = False
        self._num_thought = 0
        self._forced: deque[int] = deque()
        self._force_if_due()

    @property
    def mask(self) -> bytes | None:
        """What may come next."""
        if self._forced:
            return self._only(self._forced[0])
        return None if self._inner is None else self._inner.mask

    def accept(self, token_id: int) -> bool:
        """Follow one more token."""
        is_complete = self._inner is not None and self._inner.accept(token_id)
        if self._forced:
            self._forced.popleft()
        elif self._is_open:
            self._num_thought += 1
        if not self._is_over:
            self._follow(self._raw(token_id))
            self._force_if_due()
        return is_complete

    def refresh(self) -> None:
        """Compute what may come next."""
        if self._inner is not None:
            self._inner.refresh()

    def _follow(self, raw: bytes) -> None:
        self._characters.decode(raw)
        for byte in raw:
            if self._is_open:
                self._is_open = not _completes(self._closer, byte)
                self._is_over = not self._is_open and not self._limit.reopens
            elif _completes(self._opener, byte):
                self._is_open = True
            elif not self._limit.reopens and self._opener.matched == 0 and byte not in _WHITESPACE:
                self._is_over = True
            if self._is_over:
                return

    def _force_if_due(self) -> None:
        """Close them, unless a character or the closing tag is under way already."""
        is_due = self._is_open and not self._forced and self._num_thought >= self._limit.num_tokens
        if is_due and self._closer.matched == 0 and not self._characters.getstate()[0]:
            self._forced.extend(self._limit.close_ids)

    def _only(self, token_id: int) -> bytes:
        mask = bytearray(self._mask_bytes)
        mask[token_id >> 3] = 1 << (token_id & 7)
        return bytes(mask)


def _completes(pattern: Pattern, byte: int) -> bool:
    """Whether a pattern is complete with one more byte; then it begins anew."""
    is_complete = pattern.push(byte)
    if is_complete:
        pattern.matched = 0
    return is_complete
