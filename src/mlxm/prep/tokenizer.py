"""From text to token ids: the `tokenizers` library, with transformers only for folders that it cannot read.

Nothing here ever runs code that comes with a model.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from tokenizers import AddedToken, Tokenizer

from mlxm.errors import InvalidRequest, ModelBroken
from mlxm.prep.files import read_tokenizer
from mlxm.prep.folder import SpecialTokens, find_special_tokens

_HINT: Final = "Download the model again, or choose another one."
_UNLOADABLE: Final = (
    "The tokenizer of this model cannot be loaded: it is broken, or it needs code of its own, which is never run."
)
_OTHER_FORMATS: Final = (
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model.v3"),
    *("tekken.json", "tiktoken.model", "vocab.json", "vocab.txt"),
)
_ENVIRONMENT: Final = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "OPENBLAS_NUM_THREADS": "1"}


class Added(NamedTuple):
    """A token that was put beside a vocabulary; a special one is not text."""

    id: int
    is_special: bool


class Encoder(Protocol):
    """A model's tokenizer."""

    @property
    def special_tokens(self) -> Mapping[str, str]:
        """The tokens that a template may print, by name."""
        ...

    def encode(self, text: str) -> list[int]:
        """The ids of a text that carries its special tokens already."""
        ...

    def encode_whole(self, text: str) -> list[int]:
        """The ids of a text, with the special tokens that the tokenizer puts around texts."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens too; InvalidRequest for what is no token."""
        ...

    def find(self, token: str) -> int | None:
        """The id of a token, None when there is no such token."""
        ...

    def added_tokens(self) -> dict[str, Added]:
        """The tokens beside the vocabulary, by how they are spelled."""
        ...


def load_encoder(folder: Path) -> Encoder:
    """The tokenizer in a model folder; raises ModelBroken."""
    content = read_tokenizer(folder)
    if content is not None:
        return FastEncoder(content, find_special_tokens(folder))
    if not any((folder / name).is_file() for name in _OTHER_FORMATS):
        raise ModelBroken("This model has no tokenizer.", hint=_HINT)
    return SlowEncoder(folder)


class FastEncoder:
    """A tokenizer.json."""

    def __init__(self, content: bytes, special: SpecialTokens) -> None:
        try:
            self._tokenizer = Tokenizer.from_buffer(content)
        except ValueError as error:
            raise ModelBroken(f"tokenizer.json of this model is broken: {error}", hint=_HINT) from error
        self._tokenizer.no_truncation()  # what was set for training would silently shorten prompts
        self._tokenizer.no_padding()
        self._tokenizer.add_tokens(_missing(self._tokenizer.get_added_tokens_decoder(), special))
        self.special_tokens: Mapping[str, str] = special.texts()

    def encode(self, text: str) -> list[int]:
        """The ids of `text`."""
        return self._encode(text, is_whole=False)

    def encode_whole(self, text: str) -> list[int]:
        """The ids of `text` with special tokens."""
        return self._encode(text, is_whole=True)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; what the tokenizer does not know, it would leave out in silence."""
        for each in ids:
            if self._tokenizer.id_to_token(each) is None:
                raise _no_token(each)
        with _bare_errors_as("The model's tokenizer cannot decode these tokens."):
            return self._tokenizer.decode(ids, skip_special_tokens=False)

    def find(self, token: str) -> int | None:
        """The id of `token`."""
        return self._tokenizer.token_to_id(token)

    def added_tokens(self) -> dict[str, Added]:
        """The tokens beside the vocabulary."""
        added = self._tokenizer.get_added_tokens_decoder()
        return {token.content: Added(token_id, token.special) for token_id, token in added.items()}

    def _encode(self, text: str, *, is_whole: bool) -> list[int]:
        """The batch call frees the interpreter lock and skips the offsets, which nobody needs."""
        try:
            with _bare_errors_as("The model's tokenizer cannot encode this text."):
                return self._tokenizer.encode_batch_fast([text], add_special_tokens=is_whole)[0].ids
        except TypeError as error:
            raise InvalidRequest("The conversation holds characters that are no Unicode text.") from error


@contextmanager
def _bare_errors_as(message: str) -> Iterator[None]:
    """Type what `tokenizers` raises as the bare Exception class; anything narrower passes."""
    try:
        yield
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise ModelBroken(message, hint=_HINT) from error


def _missing(present: Mapping[int, AddedToken], special: SpecialTokens) -> list[AddedToken]:
    """Tokens that the configuration has and tokenizer.json lacks or describes differently, in the order they go in."""
    exact = {repr(token) for token in present.values()}
    missing = [token for token in special.marked if repr(token) not in exact]
    known = {token.content for token in (*present.values(), *missing)}
    for token in (*special.named.values(), *special.extra):
        if token.content not in known:
            known.add(token.content)
            missing.append(token)
    return missing


class SlowEncoder:
    """Any other format that transformers converts."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = _load_with_transformers(folder)
        self.special_tokens: Mapping[str, str] = dict(self._tokenizer.special_tokens_map)

    def encode(self, text: str) -> list[int]:
        """The ids of `text`."""
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def encode_whole(self, text: str) -> list[int]:
        """The ids of `text` with special tokens."""
        return list(self._tokenizer.encode(text, add_special_tokens=True))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`."""
        known = len(self._tokenizer)
        for each in ids:
            if each >= known:
                raise _no_token(each)
        return str(self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    def find(self, token: str) -> int | None:
        """The id of `token`."""
        found: int | None = self._tokenizer.get_vocab().get(token)
        return found

    def added_tokens(self) -> dict[str, Added]:
        """The tokens beside the vocabulary."""
        added = self._tokenizer.added_tokens_decoder
        return {str(token): Added(token_id, bool(token.special)) for token_id, token in added.items()}


def _no_token(token_id: int) -> InvalidRequest:
    return InvalidRequest(f"The model has no token {token_id}.", param="tokens")


def _load_with_transformers(folder: Path) -> Any:
    os.environ.update(_ENVIRONMENT)
    from transformers import AutoTokenizer  # noqa: PLC0415 - a second of import that few models need

    try:
        with _bare_errors_as(_UNLOADABLE):
            return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except (AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise ModelBroken(_UNLOADABLE, hint=_HINT) from error
