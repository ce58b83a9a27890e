"""Keeps answers to their grammars: for each step of each sequence, which tokens may come next.

A guide follows the tokens of one sequence, those that were taken over and no others; so it always stands where the
answer stands, whatever steps were lost on the way. Its mask is what the sequence's next row is given.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

from mlxm.engine.grammar import PARAM, limits, refusal, source_of
from mlxm.engine.output import Pattern
from mlxm.errors import UnsupportedParameter
from mlxm.types import Grammar

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_PLACES = 32
_WORD_BITS = 32
_WORD_BYTES = 4


class Grammars:
    """One model's grammars: its vocabulary is read at the first one, and the latest ones stay built."""

    def __init__(self, tokenizer_json: Callable[[], str], *, vocab_size: int, stop_ids: frozenset[int]) -> None:
        self._tokenizer_json = tokenizer_json
        self._vocab_size = vocab_size
        self._stop_ids = stop_ids
        self._built: OrderedDict[Grammar, _Built] = OrderedDict()

    def guide(self, grammar: Grammar) -> Guide:
        """A guide for a new answer; raises InvalidRequest for a grammar that this model cannot follow."""
        built = self._built.pop(grammar, None)
        if built is None:
            built = _Built(self._vocabulary, grammar)
        self._built[grammar] = built
        if len(self._built) > _PLACES:
            self._built.popitem(last=False)
        return Guide(built)

    @cached_property
    def _vocabulary(self) -> _Vocabulary:
        return _Vocabulary(self._tokenizer_json(), self._vocab_size, self._stop_ids)


class Guide:
    """One answer's way through its grammar, or towards the text from which on the grammar holds."""

    def __init__(self, built: _Built) -> None:
        self._built = built
        self._matcher: LLMatcher | None = None
        self._num_matched = 0
        self._is_stale = False
        self.mask = built.first_mask if built.marker is None else built.free_mask(0)
        """What may come next, a bit for each token; None means anything."""

    @property
    def matcher(self) -> LLMatcher:
        """Where in the grammar the answer stands."""
        if self._matcher is None:
            self._matcher = self._built.matcher()
        return self._matcher

    def accept(self, token_id: int) -> bool:
        """Follow one more token of the answer; whether the answer is complete with it."""
        if self._built.marker is not None and self._matcher is None:
            return self._accept_free(self._built.marker, token_id)
        return self._accept([token_id])

    def refresh(self) -> None:
        """Compute what may come next; raises InvalidRequest where that costs more than a grammar may."""
        if self._is_stale:
            self.mask = self.matcher.compute_bitmask()
            if self.matcher.is_error():
                raise refusal(self.matcher.get_error())
            self._is_stale = False

    def _accept_free(self, marker: bytes, token_id: int) -> bool:
        pattern = Pattern(marker, self._num_matched)
        raw = self._built.vocabulary.raw(token_id)
        for place, byte in enumerate(raw):
            if pattern.push(byte):
                return self._accept(self._built.vocabulary.tokens_of(raw[place + 1 :]))
        self._num_matched = pattern.matched
        self.mask = self._built.free_mask(pattern.matched)
        return False

    def _accept(self, token_ids: list[int]) -> bool:
        if not self.matcher.consume_tokens(token_ids):
            raise refusal(self.matcher.get_error())
        is_complete = self.matcher.is_stopped()
        self._is_stale = not is_complete
        return is_complete


class _Vocabulary:
    """A model's tokens as llguidance sees them."""

    def __init__(self, tokenizer_json: str, vocab_size: int, stop_ids: frozenset[int]) -> None:
        from llguidance import LLTokenizer  # noqa: PLC0415  (needed by the first grammar)

        known = sorted(token_id for token_id in stop_ids if 0 <= token_id < vocab_size)
        try:
            self.tokenizer: LLTokenizer = LLTokenizer(tokenizer_json, n_vocab=vocab_size, eos_token=known or None)
        except ValueError as error:
            raise UnsupportedParameter(
                f"The tokenizer of this model cannot follow a grammar: {error}", hint="Use another model.", param=PARAM
            ) from error
        self.mask_bytes = -(-vocab_size // _WORD_BITS) * _WORD_BYTES

    def raw(self, token_id: int) -> bytes:
        """The bytes of a token; of a special one, its name."""
        return self.tokenizer.decode_bytes([token_id])

    @cached_property
    def raws(self) -> list[bytes]:
        """The same for every token."""
        return [self.raw(token_id) for token_id in range(self.tokenizer.vocab_size)]

    def tokens_of(self, text: bytes) -> list[int]:
        """Some tokens that together are these bytes."""
        return self.tokenizer.tokenize_bytes(text) if text else []


class _Built:
    """A grammar that was read for a vocabulary, at its beginning.

    What comes right after the marker may be the rest of the token that completes it. Tokens with a rest that cannot
    begin the grammar's text are not allowed; which ones they are depends on how much of the marker is there already.
    """

    def __init__(self, vocabulary: _Vocabulary, grammar: Grammar) -> None:
        from llguidance import LLMatcher  # noqa: PLC0415  (needed by the first grammar)

        self.vocabulary = vocabulary
        self.marker = grammar.after.encode() if grammar.after else None
        self._matcher = LLMatcher(vocabulary.tokenizer, source_of(grammar), log_level=0, limits=limits())
        self._raise_error()
        self.first_mask = self._matcher.compute_bitmask()
        self._raise_error()
        self._free_masks: dict[int, bytes | None] = {}

    def matcher(self) -> LLMatcher:
        """A matcher for one answer."""
        return self._matcher.deep_copy()

    def free_mask(self, num_matched: int) -> bytes | None:
        """What may come next while so many bytes of the marker are there."""
        if num_matched not in self._free_masks:
            self._free_masks[num_matched] = self._all_but(self._misfits(num_matched))
        return self._free_masks[num_matched]

    def _raise_error(self) -> None:
        if self._matcher.is_error():
            raise refusal(self._matcher.get_error())

    @cached_property
    def _candidates(self) -> list[int]:
        """Tokens with something behind the byte that the marker ends with."""
        last = (self.marker or b"")[-1:]
        return [token_id for token_id, raw in enumerate(self.vocabulary.raws) if last in raw[:-1]]

    def _misfits(self, num_matched: int) -> list[int]:
        return [token_id for token_id in self._candidates if not self._fits(token_id, num_matched)]

    def _fits(self, token_id: int, num_matched: int) -> bool:
        pattern = Pattern(self.marker or b"", num_matched)
        raw = self.vocabulary.raws[token_id]
        for place, byte in enumerate(raw):
            if pattern.push(byte):
                return self._can_begin_with(raw[place + 1 :])
        return True

    def _can_begin_with(self, text: bytes) -> bool:
        token_ids = self.vocabulary.tokens_of(text)
        is_same = self.vocabulary.tokenizer.decode_bytes(token_ids) == text
        return is_same and self._matcher.validate_tokens(token_ids) == len(token_ids)

    def _all_but(self, token_ids: list[int]) -> bytes | None:
        if not token_ids:
            return None
        mask = bytearray(b"\xff" * self.vocabulary.mask_bytes)
        for token_id in token_ids:
            mask[token_id >> 3] &= ~(1 << (token_id & 7))
        return bytes(mask)
