"""The tags of a model card: the list that README.md begins with, read without a YAML library.

Only what the Hub itself writes is understood; anything else there is no tag.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from mlxm.checkpoint.files import open_regular
from mlxm.errors import ModelBroken

_FRONT_BYTES: Final = 16 * 1024
_FENCE: Final = "---"
_KEY: Final = re.compile(r"(?P<key>[\w-]+):[ \t]*(?P<value>.*)", re.ASCII)
_ITEM: Final = re.compile(r"\s*-[ \t]+(?P<value>.+)", re.ASCII)
_LISTS: Final = ("tags",)
_SINGLE: Final = ("pipeline_tag", "library_name")


def card_tags(folder: Path) -> tuple[str, ...]:
    """Tags, pipeline tag and library of the card in `folder`; nothing when there is no card that can be read."""
    try:
        with open_regular(folder / "README.md") as (file, _):
            text = file.read(_FRONT_BYTES).decode("utf-8", "replace")
    except (FileNotFoundError, ModelBroken):
        return ()  # a card is words about a model, and no part of it
    return tags_of_card(text)


def tags_of_card(text: str) -> tuple[str, ...]:
    """The tags in the front matter of a card's text."""
    lines = iter(text.splitlines())
    if next(lines, "").strip() != _FENCE:
        return ()
    tags: list[str] = []
    key = ""
    for line in lines:
        if line.strip() == _FENCE:
            break
        item, entry = _ITEM.fullmatch(line), _KEY.fullmatch(line)
        if item is not None and key in _LISTS:
            tags.append(_unquoted(item["value"]))
        elif entry is not None:
            key = entry["key"]
            tags += _inline(entry["value"]) if key in (*_LISTS, *_SINGLE) else ()
    return tuple(tags)


def _inline(value: str) -> list[str]:
    """A value on the key's own line: one text, or a list in brackets."""
    inner = value.strip().removeprefix("[").removesuffix("]")
    return [_unquoted(item) for item in inner.split(",") if item.strip()]


def _unquoted(value: str) -> str:
    return value.strip().strip("'\"")
