from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mlxm.tiny.families import FAMILIES
from mlxm.tiny.tokenizer import write_tokenizer
from mlxm.types import Message, TextPart

MakeModel = Callable[..., Path]
Say = Callable[..., tuple[Message, ...]]


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    """Write a model folder without weights: a family's tokenizer, a template, and further settings."""
    numbers: Iterator[int] = iter(range(1000))

    def make(template: str | None = None, *, family: str = "chatml", **settings: Any) -> Path:
        folder = tmp_path / f"model-{next(numbers)}"
        folder.mkdir()
        chosen = FAMILIES[family]
        if template is not None:
            chosen = msgspec.structs.replace(chosen, chat_template=template)
        write_tokenizer(folder, chosen, context=512)
        path = folder / "tokenizer_config.json"
        changed = json.loads(path.read_bytes()) | settings
        path.write_text(json.dumps({key: value for key, value in changed.items() if value != "absent"}))
        return folder

    return make


@pytest.fixture
def say() -> Say:
    """Build a conversation from (role, text) pairs."""

    def build(*turns: tuple[str, str]) -> tuple[Message, ...]:
        return tuple(msgspec.convert({"role": role, "content": [TextPart(text)]}, Message) for role, text in turns)

    return build


@pytest.fixture
def conversation(say: Say) -> tuple[Message, ...]:
    """A plain conversation of four turns."""
    return say(
        ("system", "Answer briefly."),
        ("user", "What is 2 + 2 <em>today</em>?"),
        ("assistant", "4, as ever."),
        ("user", "Grüße — und “warum”? 😀\n"),
    )
