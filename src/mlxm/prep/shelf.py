"""The few models whose tokenizer and template stay in memory between jobs."""

from __future__ import annotations

from collections import OrderedDict
from functools import cached_property
from pathlib import Path
from typing import Final

from mlxm.errors import ModelBroken
from mlxm.prep.files import Revision, revision
from mlxm.prep.folder import find_template
from mlxm.prep.gap import fill_in
from mlxm.prep.template import ChatTemplate
from mlxm.prep.tokenizer import Encoder, load_encoder
from mlxm.types import Message

_PLACES: Final = 4


class Prompter:
    """One model's way from a conversation or a text to token ids, and back."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._encoder: Encoder = load_encoder(folder)

    @cached_property
    def _template(self) -> ChatTemplate:
        """Found when it is first needed: a model without one still goes on with plain text."""
        return ChatTemplate(find_template(self._folder), self._encoder.special_tokens)

    def render(self, messages: tuple[Message, ...]) -> str:
        """The prompt's text, with all its special tokens."""
        return self._template.render(messages)

    def encode(self, text: str) -> tuple[int, ...]:
        """The token ids of such a text."""
        return tuple(self._encoder.encode(text))

    def encode_plain(self, text: str, *, suffix: str | None, is_bare: bool) -> tuple[int, ...]:
        """The token ids of a text that nobody has prepared; with `suffix`, of one with a gap to fill in after it."""
        if suffix is not None:
            return fill_in(self._encoder, text, suffix)
        return tuple(self._encoder.encode(text) if is_bare else self._encoder.encode_whole(text))

    def decode(self, ids: tuple[int, ...]) -> str:
        """The text of token ids, special tokens too; raises InvalidRequest for what is no token."""
        return self._encoder.decode(ids)


class Shelf:
    """Prompters by folder, the least recently used leaving first; a changed file makes a new one."""

    def __init__(self, places: int = _PLACES) -> None:
        self._places = places
        self._held: OrderedDict[Path, tuple[Revision, Prompter]] = OrderedDict()

    def take(self, folder: Path) -> Prompter:
        """The prompter of the model in `folder`, as its files are now."""
        now = revision(folder)
        if not now:
            raise ModelBroken("The model's folder is gone or empty.", hint="`mlxm ls` shows what is on this disk.")
        held = self._held.pop(folder, None)
        while held is None and len(self._held) >= self._places:
            self._held.popitem(last=False)
        if held is None or held[0] != now:
            held = (now, Prompter(folder))
        self._held[folder] = held
        return held[1]
