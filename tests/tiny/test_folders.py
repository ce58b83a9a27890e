"""Folders that are whole or absent, whatever happens to their builder."""

from __future__ import annotations

import errno
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

import pytest

from mlxm.errors import DiskFull, StoreError, StoreReadOnly
from mlxm.tiny.folders import SEAL, is_whole, seal_and_place, workshop

HANGS_IN_THE_WORKSHOP = """
import sys
from pathlib import Path
from mlxm.tiny.folders import workshop
with workshop(Path(sys.argv[1])) as scratch:
    (scratch / "half").write_text("done")
    print(scratch, flush=True)
    sys.stdin.read()
"""


def build(target: Path, text: str = "content") -> None:
    """Put a sealed folder with one file in the place of `target`."""
    with workshop(target.parent) as scratch:
        built = scratch / target.name
        built.mkdir()
        (built / "file.txt").write_text(text)
        seal_and_place(built, target)


def fail_after_writing(path: Path) -> NoReturn:
    """Stop in the middle of a build."""
    path.write_text("done")
    raise ZeroDivisionError


def test_a_placed_folder_is_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    """After a build there is the folder, and no scratch beside it."""
    build(tmp_path / "parent" / "model")
    assert is_whole(tmp_path / "parent" / "model")
    assert [path.name for path in (tmp_path / "parent").iterdir() if path.is_dir()] == ["model"]


def test_folders_that_were_missing_are_private(tmp_path: Path) -> None:
    """A home that comes into being this way is as closed to others as one made on purpose."""
    build(tmp_path / "home" / "models" / "model")
    assert (tmp_path / "home").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "home" / "models").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "damage", ["changed", "missing file", "no seal", "broken seal", "empty seal", "seal of another kind"]
)
def test_damage_is_noticed(tmp_path: Path, damage: str) -> None:
    """A folder is whole only with every file and every byte that it was sealed with."""
    target = tmp_path / "model"
    build(target)
    match damage:
        case "changed":
            (target / "file.txt").write_text("contenT")
        case "missing file":
            (target / "file.txt").unlink()
        case "no seal":
            (target / SEAL).unlink()
        case "broken seal":
            (target / SEAL).write_text('{"file.txt": ')
        case "empty seal":
            (target / SEAL).write_text("{}")
        case _:
            (target / SEAL).write_text('["file.txt"]')
    assert not is_whole(target)


@pytest.mark.parametrize("obstacle", ["folder", "file", "dangling link"])
def test_whatever_stands_in_the_place_is_replaced(tmp_path: Path, obstacle: str) -> None:
    """A damaged folder, a stray file or a link to nowhere gives way to the new folder."""
    target = tmp_path / "model"
    if obstacle == "folder":
        build(target, "old")
    elif obstacle == "file":
        target.write_text("stray")
    else:
        target.symlink_to(tmp_path / "nowhere")
    build(target, "new")
    assert is_whole(target)
    assert (target / "file.txt").read_text() == "new"


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    """An error inside the workshop comes through, and its scratch folder is gone."""
    with pytest.raises(ZeroDivisionError), workshop(tmp_path) as scratch:
        fail_after_writing(scratch / "half")
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_a_killed_builder_neither_blocks_nor_litters(tmp_path: Path) -> None:
    """The next builder gets the lock of one that was killed, and clears away what it left."""
    command = [sys.executable, "-c", HANGS_IN_THE_WORKSHOP, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as builder:
        assert builder.stdout is not None
        left = Path(builder.stdout.readline().strip())
        builder.kill()
    assert (left / "half").exists()
    build(tmp_path / "model")
    assert not left.exists()
    assert is_whole(tmp_path / "model")


@pytest.mark.parametrize(
    ("code", "error"),
    [(errno.ENOSPC, DiskFull), (errno.EROFS, StoreReadOnly), (errno.EACCES, StoreReadOnly), (errno.EIO, StoreError)],
)
def test_a_refusing_file_system_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, error: type[StoreError]
) -> None:
    """A full disk, a read-only place and a failing disk are told apart, with the place and a way out."""

    def refuse(**_: object) -> NoReturn:
        raise OSError(code, "refused")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(error, match=str(tmp_path)) as caught, workshop(tmp_path):
        pytest.fail("there is nothing to work in")
    assert type(caught.value) is error
    assert caught.value.hint


def test_a_parent_that_is_a_file_is_refused(tmp_path: Path) -> None:
    """Where a file stands, no folder can be made, and the message says where."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"), workshop(tmp_path / "file"):
        pytest.fail("there is nothing to work in")
