from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlxm.errors import SecretUnreadable, StoreError
from mlxm.store import private


@pytest.fixture(params=[0o000, 0o022, 0o777], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    """A generous umask, a usual one, and one that takes everything away."""
    before = os.umask(request.param)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    """The permission bits."""
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.usefixtures("umask")
def test_what_is_made_is_for_its_owner_alone_whatever_the_umask(tmp_path: Path) -> None:
    """Folders 0700, files 0600."""
    private.make_folder(tmp_path / "folder")
    private.make_file(tmp_path / "folder" / "file", b"content")
    private.make_empty(tmp_path / "folder" / "empty")
    assert mode(tmp_path / "folder") == 0o700
    assert mode(tmp_path / "folder" / "file") == 0o600
    assert mode(tmp_path / "folder" / "empty") == 0o600
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["empty", "file"]


def test_folders_are_made_with_their_parents_and_existing_ones_keep_their_mode(tmp_path: Path) -> None:
    """A home may be put into a folder that others share; that one is not ours to change."""
    (tmp_path / "shared").mkdir(mode=0o755)
    private.make_folder(tmp_path / "shared")
    private.make_folder(tmp_path / "shared" / "a" / "b")
    assert mode(tmp_path / "shared") == 0o755
    assert mode(tmp_path / "shared" / "a" / "b") == 0o700


def test_a_file_is_never_overwritten(tmp_path: Path) -> None:
    """Whoever comes second reads what the first one made."""
    private.make_file(tmp_path / "file", b"first")
    private.make_file(tmp_path / "file", b"second")
    private.make_empty(tmp_path / "file")
    assert private.read_file(tmp_path / "file", 10) == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_is_not_written_through_a_symlink(tmp_path: Path) -> None:
    """A link that lies in wait gets nothing, and its target is not made."""
    (tmp_path / "file").symlink_to(tmp_path / "target")
    private.make_file(tmp_path / "file", b"content")
    private.make_empty(tmp_path / "file")
    assert not (tmp_path / "target").exists()


def test_a_symlink_is_not_read(tmp_path: Path) -> None:
    """Though what it points to would be in order."""
    private.make_file(tmp_path / "target", b"content")
    (tmp_path / "file").symlink_to(tmp_path / "target")
    with pytest.raises(SecretUnreadable, match="not a plain file"):
        private.read_file(tmp_path / "file", 10)


def test_what_is_no_plain_file_is_not_read(tmp_path: Path) -> None:
    """A pipe would make the reader wait, a folder has no content."""
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(SecretUnreadable, match=f"{name} is not a plain file"):
            private.read_file(tmp_path / name, 10)


@pytest.mark.parametrize("bits", [0o640, 0o620, 0o604, 0o601])
def test_a_file_that_others_can_use_is_refused_with_the_cure(tmp_path: Path, bits: int) -> None:
    """Any bit for group or others counts."""
    path = tmp_path / "file"
    private.make_file(path, b"content")
    path.chmod(bits)
    with pytest.raises(SecretUnreadable, match=f"mode 0{bits:o}") as caught:
        private.read_file(path, 10)
    assert caught.value.hint == f"chmod 600 {path}"


def test_a_file_that_is_not_there_is_none(tmp_path: Path) -> None:
    """Its maker has not come yet."""
    assert private.read_file(tmp_path / "file", 10) is None


@pytest.mark.parametrize("bits", [0o770, 0o702, 0o1777])
def test_a_folder_that_others_can_write_is_refused_with_the_cure(tmp_path: Path, bits: int) -> None:
    """They could put files of their own into it."""
    tmp_path.chmod(bits)
    with pytest.raises(SecretUnreadable, match="exchange") as caught:
        private.check_folder(tmp_path)
    assert caught.value.hint == f"chmod 700 {tmp_path}"


def test_a_folder_that_others_can_only_read_will_do(tmp_path: Path) -> None:
    """The files in it protect themselves."""
    tmp_path.chmod(0o755)
    private.check_folder(tmp_path)


def test_a_name_that_is_too_long_is_a_failure_of_the_store(tmp_path: Path) -> None:
    """What the system says comes out as our error."""
    with pytest.raises(StoreError, match="could not be used"):
        private.read_file(tmp_path / ("x" * 300), 10)
