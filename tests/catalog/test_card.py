from __future__ import annotations

import os
from pathlib import Path

import pytest

from mlxm.catalog.card import card_tags, tags_of_card


@pytest.mark.parametrize(
    ("text", "tags"),
    [
        ("---\ntags:\n- mlx\n- 'tool-use'\nlicense: mit\n- x\n---\n- no tag\n", ("mlx", "tool-use")),
        ("---\ntags:\n  - mlx\n  - code\npipeline_tag: text-generation\n---\n", ("mlx", "code", "text-generation")),
        ('---\ntags: [mlx, "chat"]\nlibrary_name: mlx\n---\n', ("mlx", "chat", "mlx")),
        ("---\nlicense: mit\n---\n", ()),
        ("# A model\n---\ntags:\n- mlx\n---\n", ()),
        ("---\ntags:\n- mlx\n", ("mlx",)),
        ("", ()),
        ("---\ntags:\n-\n- \n---", ()),
        ("---\n\0: \ufffd\ntags: {a: b}\n---", ("{a: b}",)),
    ],
)
def test_tags_are_read_from_the_front_of_a_card(text: str, tags: tuple[str, ...]) -> None:
    """As the Hub writes them, and nothing from the text below."""
    assert tags_of_card(text) == tags


def test_a_card_that_cannot_be_read_has_no_tags(tmp_path: Path) -> None:
    """It is words about a model, and no part of it."""
    assert card_tags(tmp_path) == ()
    os.mkfifo(tmp_path / "README.md")
    assert card_tags(tmp_path) == ()
    (tmp_path / "README.md").unlink()
    (tmp_path / "README.md").write_bytes(b"---\ntags:\n- \xff\xfe\n- mlx\n---\n")
    assert card_tags(tmp_path)[-1] == "mlx"
