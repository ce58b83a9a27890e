from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from mlxm.catalog.hub_files import RemoteFile
from mlxm.downloads.verify import Notebook, is_as_said

CONTENT = b"x" * 5_000_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
GIT = hashlib.sha1(b"blob 5000000\0" + CONTENT, usedforsecurity=False).hexdigest()


def said(*, size_bytes: int = len(CONTENT), sha256: str | None = None, blob_id: str | None = None) -> RemoteFile:
    """A file as the Hub describes it."""
    return RemoteFile(path="a", size_bytes=size_bytes, sha256=sha256, blob_id=blob_id)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The file on disk."""
    path = tmp_path / "a"
    path.write_bytes(CONTENT)
    return path


@pytest.mark.parametrize(
    ("file", "is_right", "read_bytes"),
    [
        (said(sha256=SHA256), True, len(CONTENT)),
        (said(sha256=SHA256, blob_id="0" * 40), True, len(CONTENT)),
        (said(sha256="0" * 64, blob_id=GIT), False, len(CONTENT)),
        (said(blob_id=GIT), True, len(CONTENT)),
        (said(blob_id=SHA256[:40]), False, len(CONTENT)),
        (said(), True, 0),
        (said(size_bytes=4_999_999, sha256=SHA256), False, 0),
    ],
)
def test_size_and_hash_have_to_be_as_said(place: Path, file: RemoteFile, read_bytes: int, *, is_right: bool) -> None:
    """A large file has a sha256, a small one git's id; where the Hub gives neither the size has to do."""
    read: list[int] = []
    assert is_as_said(place, file, read.append) == is_right
    assert sum(read) == read_bytes


def test_what_was_verified_is_remembered_until_it_changes(place: Path, tmp_path: Path) -> None:
    """Also by the next process; touched, replaced or unnamed it has to be read again."""
    path = tmp_path / "notes.json"
    file = said(sha256=SHA256)
    notebook = Notebook(path)
    assert not notebook.knows(place, file)
    notebook.add(place, file)
    assert Notebook(path).knows(place, file)
    assert not Notebook(path).knows(place, said(blob_id=GIT))
    os.utime(place, ns=(1, 1))
    assert not Notebook(path).knows(place, file)
    notebook.add(place, said())
    assert not Notebook(path).knows(place, said())
    assert [entry.name for entry in tmp_path.iterdir() if entry.suffix == ".tmp"] == []


@pytest.mark.parametrize("notes", [b"", b"[1]", b'{"a": [1]}', b"\xff"])
def test_a_notebook_that_cannot_be_read_is_empty(place: Path, tmp_path: Path, notes: bytes) -> None:
    """Then everything is verified once more."""
    path = tmp_path / "notes.json"
    path.write_bytes(notes)
    notebook = Notebook(path)
    assert not notebook.knows(place, said(sha256=SHA256))
    notebook.add(place, said(sha256=SHA256))
    assert Notebook(path).knows(place, said(sha256=SHA256))
