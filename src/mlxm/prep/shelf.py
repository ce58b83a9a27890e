"""The few models whose tokenizer and template stay in memory between jobs."""

from __future__ import annotations

from collections import OrderedDict
from functools import cached_property
from pathlib import Path
from typing import Final

import msgspec

from mlxm.engine.formats.families import Family, recognise
from mlxm.errors import ModelBroken
from mlxm.frames import Description
from mlxm.prep.files import Revision, revision
from mlxm.prep.folder import find_model_type, find_template, find_template_texts, find_tool_template
from mlxm.prep.gap import fill_in
from mlxm.prep.options import PLAIN, RenderOptions
from mlxm.prep.renderer import Rendered, Renderer
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
    def _renderer(self) -> Renderer:
        """Made when it is first needed: a model without a template still goes on with plain text."""
        return self._open(find_template(self._folder))

    @cached_property
    def _tool_renderer(self) -> Renderer:
        """The one for conversations with tools, for which some models have a template of their own."""
        template = find_tool_template(self._folder)
        return self._renderer if template is None else self._open(template)

    @cached_property
    def _family(self) -> Family:
        texts = find_template_texts(self._folder)
        return recognise(find_model_type(self._folder), texts, self._encoder.added_tokens())

    def _open(self, template: str) -> Renderer:
        return Renderer(ChatTemplate(template, self._encoder.special_tokens), self._family)

    def render(self, messages: tuple[Message, ...], options: RenderOptions = PLAIN) -> Rendered:
        """The prompt's text, with all its special tokens."""
        renderer = self._tool_renderer if options.tools else self._renderer
        return renderer.render(messages, options)

    def encode(self, text: str) -> tuple[int, ...]:
        """The token ids of such a text."""
        return tuple(self._encoder.encode(text))

    def encode_plain(self, text: str, *, suffix: str | None, is_bare: bool) -> tuple[int, ...]:
        """The token ids of a text that nobody has prepared; with `suffix`, of one with a gap to fill in after it."""
        if suffix is not None:
            return fill_in(self._encoder, text, suffix)
        return tuple(self._encoder.encode(text) if is_bare else self._encoder.encode_whole(text))

    def describe(self, job: int) -> Description:
        """How the model writes."""
        family, added = self._family, self._encoder.added_tokens()
        special = {token: found.id for token, found in added.items() if found.is_special or _is_tag(token)}
        kept = family.kept_tokens(special)
        stop_ids = (self._encoder.find(token) for token in family.stop_tokens)
        return Description(
            job=job,
            family=msgspec.msgpack.encode(family),
            special_ids={token: token_id for token, token_id in special.items() if token in kept},
            stop_ids=tuple(token_id for token_id in stop_ids if token_id is not None),
        )

    def decode(self, ids: tuple[int, ...]) -> str:
        """The text of token ids, special tokens too; raises InvalidRequest for what is no token."""
        return self._encoder.decode(ids)


def _is_tag(token: str) -> bool:
    """Whether grammars take a token for a special one by its looks."""
    return token.startswith("<") and token.endswith(">")


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
