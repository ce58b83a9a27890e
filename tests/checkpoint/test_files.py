from __future__ import annotations

import os
from pathlib import Path

import pytest

from mlxm.checkpoint.files import printable, read_object, read_text
from mlxm.errors import ModelBroken


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a file under test lies."""
    return tmp_path / "config.json"


def test_files_are_read_and_absent_ones_are_none(path: Path) -> None:
    """Absence is an answer, damage is not."""
    assert read_object(path) is None
    assert read_text(path) is None
    path.write_text('{"a": [1, Infinity]}')
    assert read_object(path) == {"a": [1, float("inf")]}
    assert read_text(path) == '{"a": [1, Infinity]}'


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is not valid JSON"),
        (b"{", "is not valid JSON"),
        (b'{"a":' * 100_000, "is not valid JSON"),
        (b'{"a":' + b"9" * 5000 + b"}", "is not valid JSON"),
        (b"[]", "is not a JSON object"),
        (b"\xff\xfe{}", "is not valid UTF-8"),
        (b'{"a":"' + b"x" * 100 + b'"}', "is larger than 0 MiB"),
    ],
)
def test_damage_is_named_with_the_file(path: Path, content: bytes, reason: str) -> None:
    """Whoever has the file knows which one it is."""
    path.write_bytes(content)
    with pytest.raises(ModelBroken, match=f"config.json {reason}"):
        read_object(path, limit_bytes=64 if "larger" in reason else 1 << 24)


@pytest.mark.parametrize("kind", ["folder", "pipe", "loop"])
def test_what_is_no_file_is_refused_and_not_waited_for(path: Path, kind: str) -> None:
    """A pipe that nobody writes to would hold up everything."""
    if kind == "folder":
        path.mkdir()
    if kind == "pipe":
        os.mkfifo(path)
    if kind == "loop":
        path.symlink_to(path.name)
    with pytest.raises(ModelBroken, match=r"config\.json"):
        read_object(path)


def test_bytes_that_are_no_text_can_be_shown() -> None:
    """File systems allow names that no terminal can print."""
    assert printable(Path(os.fsdecode(b"a\xff"))) == "a\\xff"
