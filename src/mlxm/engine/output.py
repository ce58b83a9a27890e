"""From token ids to text, while the tokens still arrive one at a time.

What has been handed out is never taken back: a character split over tokens, or the beginning of a stop string, is
held until it is certain.
"""

from __future__ import annotations

import codecs
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel

from mlxm.errors import ModelBroken
from mlxm.types import FinishReason

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_BYTE_TOKEN_LENGTH = len("<0x00>")
_HEX_DIGITS = frozenset("0123456789abcdefABCDEF")
_SELF_SPELLED = frozenset((*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)))


def _byte_of_character() -> dict[str, int]:
    """The byte each character of a byte-level vocabulary stands for; bytes without a glyph use U+0100 and up."""
    spelled = {chr(byte): byte for byte in _SELF_SPELLED}
    rest = (byte for byte in range(0x100) if byte not in _SELF_SPELLED)
    return spelled | {chr(0x100 + place): byte for place, byte in enumerate(rest)}


_BYTE_OF = _byte_of_character()
_BYTE_LEVEL = b'"ByteLevel"'
_WORD_MARK = "▁"
"""How SentencePiece writes a space."""


class TokenText(Protocol):
    """The text of one sequence; all that `add` and `finish` return, joined, is the decoding of all its tokens."""

    def add(self, token_id: int) -> str:
        """The text that has become certain with one more token."""
        ...

    def finish(self) -> str:
        """What was held back, when no more tokens come."""
        ...


class Detokenizer:
    """One model's way from token ids to text; special tokens have none, and neither have ids it does not know."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._special = frozenset(token_id for token_id, token in added.items() if token.special)
        self._added = frozenset(added)
        self._is_byte_level = isinstance(tokenizer.decoder, ByteLevel)
        self._spells_bytes = tokenizer.decoder is not None and _BYTE_LEVEL in tokenizer.decoder.__getstate__()
        self._spellings: dict[int, bytes] = {}

    @classmethod
    def from_folder(cls, folder: Path) -> Detokenizer:
        """Read tokenizer.json; raises ModelBroken."""
        path = folder / "tokenizer.json"
        try:
            return cls(Tokenizer.from_str(path.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError) as error:
            raise ModelBroken(f"{path} cannot be read.", hint="Fetch the model again.") from error
        except Exception as error:
            if type(error) is not Exception:  # the library raises no class of its own
                raise
            raise ModelBroken(f"{path} is no tokenizer: {error}", hint="Fetch the model again.") from error

    def start(self, kept: frozenset[int] = frozenset()) -> TokenText:
        """The text of a new sequence, in which these special tokens are spelled out."""
        return _ByteLevelText(self, kept) if self._is_byte_level else _WindowedText(self, kept)

    def id_of(self, token: str) -> int | None:
        """The id of a token by its name."""
        return self._tokenizer.token_to_id(token)

    def token(self, token_id: int) -> str | None:
        """How the vocabulary spells a token, or None when it adds nothing to the text."""
        return None if token_id in self._special else self._tokenizer.id_to_token(token_id)

    def raw(self, token_id: int) -> bytes:
        """The bytes that a token stands for, whole characters or not; of a special token, its name."""
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if token_id in self._added:
            return token.encode()
        if self._spells_bytes:
            return _spelled_bytes(token)
        if _is_byte_token(token):
            return bytes([int(token[3:5], 16)])
        return token.replace(_WORD_MARK, " ").encode()

    def to_json(self) -> str:
        """The tokenizer as tokenizer.json describes it, without what was set for training."""
        plain = Tokenizer.from_str(self._tokenizer.to_str())
        plain.no_padding()
        plain.no_truncation()
        return plain.to_str()

    def decode(self, token_ids: list[int]) -> str:
        """The text of a whole sequence, special tokens too."""
        return self._tokenizer.decode(token_ids, skip_special_tokens=False)

    def spelling(self, token_id: int) -> bytes:
        """The bytes of a token in a byte-level vocabulary."""
        if token_id not in self._spellings:
            self._spellings[token_id] = _spelled_bytes(self.token(token_id) or "")
        return self._spellings[token_id]


def _spelled_bytes(token: str) -> bytes:
    """A token with a character outside the byte alphabet is an added one and stands for itself."""
    try:
        return bytes(_BYTE_OF[character] for character in token)
    except KeyError:
        return token.encode()


class _ByteLevelText:
    """For vocabularies that spell bytes: only an unfinished character has to wait."""

    def __init__(self, detokenizer: Detokenizer, kept: frozenset[int]) -> None:
        self._detokenizer = detokenizer
        self._kept = kept
        self._characters = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token_id: int) -> str:
        is_kept = token_id in self._kept
        spelling = self._detokenizer.raw(token_id) if is_kept else self._detokenizer.spelling(token_id)
        return self._characters.decode(spelling)

    def finish(self) -> str:
        return self._characters.decode(b"", final=True)


class _WindowedText:
    """For every other vocabulary: decodes the last tokens again, in front of the new ones.

        window   | context: handed out already | fresh |
        returned                               [ text  ]

    The context keeps a decoder from stripping a space that is only at the window's beginning. A run of byte tokens
    is good or bad as a whole, so it waits for its end.
    """

    def __init__(self, detokenizer: Detokenizer, kept: frozenset[int]) -> None:
        self._detokenizer = detokenizer
        self._kept = kept
        self._window: list[int] = []
        self._context_length = 0
        self._context_text = ""

    def add(self, token_id: int) -> str:
        token = self._detokenizer.token(token_id)
        if token is None and token_id not in self._kept:
            return ""
        self._window.append(token_id)
        if token is not None and _is_byte_token(token):
            return ""
        return self._fresh(is_last=False)

    def finish(self) -> str:
        return self._fresh(is_last=True)

    def _fresh(self, *, is_last: bool) -> str:
        text = self._detokenizer.decode(self._window)
        fresh = text[len(self._context_text) :]
        if not fresh or (text.endswith(_REPLACEMENT) and not is_last):
            return ""
        del self._window[: self._context_length]
        self._context_length = len(self._window)
        self._context_text = self._detokenizer.decode(self._window)
        return fresh


def _is_byte_token(token: str) -> bool:
    is_framed = len(token) == _BYTE_TOKEN_LENGTH and token.startswith("<0x") and token.endswith(">")
    return is_framed and set(token[3:5]) <= _HEX_DIGITS


class Pattern:
    """Characters or bytes to be found, and how many of them the text so far ends with.

    It is Knuth, Morris and Pratt's automaton.
    """

    def __init__(self, stop: Sequence[object], matched: int = 0) -> None:
        self.stop = stop
        self.matched = matched
        self._fallback = [0] * len(stop)
        for place in range(1, len(stop)):
            self._fallback[place] = self._after(self._fallback[place - 1], stop[place])

    def push(self, character: object) -> bool:
        """Read one more; True when the pattern is complete."""
        self.matched = self._after(self.matched, character)
        return self.matched == len(self.stop)

    def _after(self, matched: int, character: object) -> int:
        while matched and self.stop[matched] != character:
            matched = self._fallback[matched - 1]
        return matched + (self.stop[matched] == character)


class StopStrings:
    """Finds stop strings however the text is cut into pieces; nothing from the match on is handed out.

    The string that is complete first wins; of several complete at the same character, the longest.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._patterns = [Pattern(stop) for stop in stops if stop]
        self._held = ""
        self.found: str | None = None

    @property
    def is_found(self) -> bool:
        """Whether one of them is complete."""
        return self.found is not None

    def push(self, text: str) -> str:
        """The text that can no longer belong to a stop string."""
        if not self._patterns or self.is_found:
            return "" if self.is_found else text
        for place, character in enumerate(text):
            complete = [len(pattern.stop) for pattern in self._patterns if pattern.push(character)]
            if complete:
                return self._cut(self._held + text[: place + 1], max(complete))
        return self._hold(self._held + text, max(pattern.matched for pattern in self._patterns))

    def finish(self) -> str:
        """The text held back, when no more comes."""
        return self._hold(self._held, 0)

    def _cut(self, text: str, length: int) -> str:
        self.found = text[len(text) - length :]
        self._held = ""
        return text[: len(text) - length]

    def _hold(self, text: str, length: int) -> str:
        end = len(text) - length
        self._held = text[end:]
        return text[:end]


class Piece(msgspec.Struct, frozen=True):
    """What one token adds to an answer."""

    text: str
    finish_reason: FinishReason | None = None
    stop: str | None = None
    """The stop string that ended the answer."""


class Answer:
    """One sequence's output: its text, and when it is complete."""

    def __init__(
        self,
        detokenizer: Detokenizer,
        *,
        stop_ids: Collection[int],
        stops: Iterable[str],
        max_tokens: int,
        kept: frozenset[int] = frozenset(),
    ) -> None:
        self._text = detokenizer.start(kept)
        self._stop_ids = stop_ids
        self._stops = StopStrings(stops)
        self._max_tokens = max_tokens
        self.num_tokens = 0

    def add(self, token_id: int, *, is_complete: bool = False) -> Piece:
        """Count one more token, with which the answer may be complete; a stop token counts, but has no text."""
        self.num_tokens += 1
        if token_id in self._stop_ids:
            return Piece(self._rest(), "stop")
        text = self._stops.push(self._text.add(token_id))
        is_last = is_complete or self.num_tokens >= self._max_tokens
        if is_last and not self._stops.is_found:
            text += self._rest()
        if is_complete or self._stops.is_found:
            return Piece(text, "stop", self._stops.found)
        return Piece(text, "length" if is_last else None)

    def _rest(self) -> str:
        text = self._stops.push(self._text.finish())
        return text + self._stops.finish()
