from __future__ import annotations

import fcntl
import hashlib
from pathlib import Path

import pytest

from mlxm.catalog.hub_files import RemoteFile
from mlxm.downloads.cache import ModelCache, free_bytes
from mlxm.errors import InvalidRequest
from tests.downloads.harness import FOLDER, NAME

COMMIT = "a" * 40
CONTENT = b"weights"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
FILE = RemoteFile(path="sub/model.safetensors", size_bytes=len(CONTENT), sha256=SHA256)
SMALL = RemoteFile(path="config.json", size_bytes=2, blob_id="b" * 40)


def put(cache: Path, file: RemoteFile, content: bytes, *, linked: bool = True) -> Path:
    """Lay a file where huggingface_hub does."""
    blob = cache / FOLDER / "blobs" / str(file.blob_id if file.sha256 is None else file.sha256)
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(content)
    if linked:
        place = cache / FOLDER / "snapshots" / COMMIT / file.path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(blob)
    return blob


def test_what_is_missing_is_told_apart_from_what_has_to_be_fetched(cache: Path) -> None:
    """Contents that came with another commit only need a link."""
    model = ModelCache(cache, NAME)
    assert model.missing(COMMIT, [FILE, SMALL]) == (FILE, SMALL)
    assert model.needed_bytes(COMMIT, [FILE, SMALL]) == len(CONTENT) + 2
    put(cache, FILE, CONTENT, linked=False)
    put(cache, SMALL, b"{}")
    assert model.missing(COMMIT, [FILE, SMALL]) == (FILE,)
    assert model.needed_bytes(COMMIT, [FILE, SMALL]) == 0


def test_a_file_of_another_size_is_not_there_and_goes(cache: Path) -> None:
    """Its content too; one of the right size stays."""
    model = ModelCache(cache, NAME)
    wrong, right = put(cache, FILE, b"half"), put(cache, SMALL, b"{}")
    assert model.missing(COMMIT, [FILE, SMALL]) == (FILE,)
    model.discard_wrong_size(COMMIT, FILE)
    model.discard_wrong_size(COMMIT, SMALL)
    assert (wrong.exists(), model.place(COMMIT, FILE).is_symlink(), right.exists()) == (False, False, True)


def test_a_content_that_another_model_shares_goes_with_its_link(cache: Path) -> None:
    """The Hub's library keeps some contents once for all models, with links in each; others have none of it."""
    model = ModelCache(cache, NAME)
    shared = cache / "blobs" / SHA256[:2] / SHA256
    shared.parent.mkdir(parents=True)
    shared.write_bytes(CONTENT)
    blob = put(cache, FILE, CONTENT)
    blob.unlink()
    blob.symlink_to(shared)
    model.discard(COMMIT, FILE)
    assert not shared.exists()
    assert not blob.is_symlink()
    model.discard(COMMIT, FILE)  # nothing there any more


def test_a_link_that_leads_out_of_the_cache_is_only_cut(cache: Path, tmp_path: Path) -> None:
    """What is not in the cache is not ours."""
    outside = tmp_path / "precious"
    outside.write_bytes(CONTENT)
    place = cache / FOLDER / "snapshots" / COMMIT / FILE.path
    place.parent.mkdir(parents=True)
    place.symlink_to(outside)
    ModelCache(cache, NAME).discard(COMMIT, FILE)
    assert outside.exists()
    assert not place.is_symlink()


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(cache: Path) -> None:
    """huggingface_hub holds a lock on what it writes."""
    blobs, locks = cache / FOLDER / "blobs", cache / ".locks" / FOLDER
    for folder in (blobs, locks):
        folder.mkdir(parents=True)
    dead, orphan, living = (blobs / f"{name}.1a2b.incomplete" for name in ("dead", "orphan", "living"))
    for path in (dead, orphan, living):
        path.write_bytes(b"12345")
    (locks / "dead.lock").touch()
    with (locks / "living.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert ModelCache(cache, NAME).remove_leftovers() == 10
    assert list(blobs.iterdir()) == [living]


def test_a_branch_leads_to_its_commit(cache: Path) -> None:
    """A commit needs no name, and no name leads out of the folder."""
    model = ModelCache(cache, NAME)
    model.write_ref(COMMIT, COMMIT)
    assert not cache.exists()
    model.write_ref("refs/pr/3", COMMIT)
    model.write_ref("refs/pr/3", "b" * 40)
    (ref,) = (path for path in (cache / FOLDER / "refs").rglob("*") if path.is_file())
    assert ref == cache / FOLDER / "refs" / "refs" / "pr" / "3"
    assert ref.read_text() == "b" * 40
    for name in ("../../escaped", "/tmp/escaped", ""):  # noqa: S108  (it must not be written)
        with pytest.raises(InvalidRequest):
            model.write_ref(name, COMMIT)


def test_room_is_asked_of_the_nearest_folder_that_exists(cache: Path, tmp_path: Path) -> None:
    """The cache may have to be made first."""
    assert free_bytes(cache / "x" / "y") > 0
    assert abs(free_bytes(cache) - free_bytes(tmp_path)) < 1 << 30
