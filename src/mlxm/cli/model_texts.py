"""The texts and files that come with a model, read from its folder: template, card, and the list of all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from mlxm.checkpoint.files import read_object, read_text
from mlxm.errors import NotFound

_TEMPLATE_KEY = "chat_template"


class ModelFile(msgspec.Struct, frozen=True):
    """A file of a model, by its path in the model's folder."""

    path: str
    size_bytes: int


def list_files(folder: Path) -> list[ModelFile]:
    """Every file of a model; what a link leads to counts, as the Hub's cache keeps contents elsewhere."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [ModelFile(path.relative_to(folder).as_posix(), path.stat().st_size) for path in paths]


def read_card(folder: Path, name: str) -> str:
    """The model card without the table of facts before it; NotFound when the model has none."""
    text = read_text(folder / "README.md")
    if text is None:
        raise NotFound(f"{name} came without a model card.")
    head, mark, rest = text.removeprefix("---\n").partition("\n---\n")
    return rest.lstrip("\n") if mark and text.startswith("---\n") and head else text


def read_template(folder: Path, name: str) -> str:
    """The chat template, from wherever this model keeps it; NotFound when it has none."""
    text = read_text(folder / "chat_template.jinja")
    for file_name in ("chat_template.json", "tokenizer_config.json"):
        if text is None and (found := read_object(folder / file_name)) is not None:
            text = _pick(found.get(_TEMPLATE_KEY))
    if text is None:
        raise NotFound(f"{name} has no chat template.", hint="It continues text, and is not made for conversations.")
    return text


def _pick(found: Any) -> str | None:
    """One template of those that a tokenizer may name: the one called default, or the first."""
    if isinstance(found, str):
        return found
    named = [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []
    texts = {str(each.get("name")): each.get("template") for each in named}
    picked = texts.get("default", next(iter(texts.values()), None))
    return picked if isinstance(picked, str) else None
