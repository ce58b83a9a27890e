from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from mlxm.catalog.local import LocalModel, LocalModels, Roots
from mlxm.catalog.memo import Memo
from mlxm.errors import InvalidRequest, ModelNotFound
from tests.catalog.folders import COMMIT, CONFIG, PLAIN, model_files, safetensors, write_cached, write_folder

NOBODY = 65534
SECOND = "f" * 40


def only(models: LocalModels) -> LocalModel:
    """The one model that there is."""
    (model,) = models.list()
    return model


def size_of(files: dict[str, bytes]) -> int:
    """Bytes of all files together."""
    return sum(map(len, files.values()))


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Do something without the rights of the superuser, whom no mode keeps out."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def open_parents(folder: Path) -> None:
    """Let everybody pass through the folders that the test runner has made for its owner alone."""
    for parent in (folder, *folder.parents):
        if parent.stat().st_uid == os.geteuid() and not parent.stat().st_mode & 0o005:
            parent.chmod(0o755)


def test_models_are_found_in_every_place(models: LocalModels, roots: Roots) -> None:
    """The Hub's cache, LM Studio's folder, an imported collection; ordered by name."""
    assert roots.lmstudio is not None
    write_cached(roots.hub_cache, "org/cached", model_files())
    write_cached(roots.hub_cache, "bare", model_files())
    write_folder(roots.lmstudio / "org" / "studio", model_files())
    write_folder(roots.imported[0] / "mine", model_files())
    write_folder(roots.imported[0] / "owner" / "theirs", model_files())
    found = models.scan()
    assert [(model.id, model.source) for model in found.models] == [
        ("bare", "hub"),
        ("mine", "import"),
        ("org/cached", "hub"),
        ("org/studio", "lmstudio"),
        ("owner/theirs", "import"),
    ]
    assert {(model.state, model.runnable) for model in found.models} == {("ready", True)}
    assert found.problems == ()
    assert models.names() == ("bare", "mine", "org/cached", "org/studio", "owner/theirs", "mlxm/tiny")
    for model in found.models:
        assert models.find(model.id) == model
        assert model.characteristics is not None
        assert model.characteristics.kind == "text"


def test_a_cached_model_is_known_in_full(models: LocalModels, roots: Roots) -> None:
    """Where it lies, which commit it is, and what it takes to the byte."""
    files = model_files()
    snapshot = write_cached(roots.hub_cache, "org/model", files)
    model = only(models)
    assert (model.path, model.revision, model.revisions) == (snapshot, COMMIT, (COMMIT,))
    assert (model.size_bytes, model.disk_bytes) == (size_of(files), size_of(files))
    assert model.last_used is not None
    assert abs(model.last_used - time.time()) < 3600


def test_looking_at_a_model_is_not_using_it(models: LocalModels, roots: Roots) -> None:
    """Its headers are read for the list; only who reads it after that has used it."""
    weights = write_cached(roots.hub_cache, "org/model", model_files()) / "model.safetensors"
    os.utime(weights, (1_700_000_000, 1_700_000_000))
    assert only(models).last_used == 1_700_000_000
    os.utime(weights, (time.time(), 1_700_000_000))
    assert only(models).last_used == 1_700_000_000
    os.utime(weights, (time.time() + 60, 1_700_000_000))
    used = only(models).last_used
    assert used is not None
    assert used > time.time()


def test_an_imported_folder_may_be_a_model_itself(tmp_path: Path, mlxm_home: Path) -> None:
    """Its name is the folder's."""
    folder = write_folder(tmp_path / "My-Model", model_files())
    models = LocalModels(Roots(home=mlxm_home, hub_cache=tmp_path / "gone", imported=(folder,)))
    assert (only(models).id, only(models).path, only(models).source) == ("My-Model", folder, "import")


def test_files_are_counted_once_however_many_snapshots_link_to_them(models: LocalModels, roots: Roots) -> None:
    """Two revisions share the weights."""
    files = model_files()
    write_cached(roots.hub_cache, "org/model", files)
    other = files | {"config.json": json.dumps(CONFIG | {"vocab_size": 7}).encode()}
    write_cached(roots.hub_cache, "org/model", other, commit=SECOND)
    model = only(models)
    assert set(model.revisions) == {COMMIT, SECOND}
    assert model.revision == SECOND
    assert model.size_bytes == size_of(other)
    assert model.disk_bytes == size_of(files) + len(other["config.json"])


def test_files_without_links_are_counted_too(models: LocalModels, roots: Roots) -> None:
    """Where links are not allowed, snapshots hold the files themselves."""
    snapshot = roots.hub_cache / "models--org--model" / "snapshots" / COMMIT
    write_folder(snapshot, model_files())
    assert only(models).disk_bytes == size_of(model_files())


def test_the_branch_decides_which_snapshot_counts(models: LocalModels, roots: Roots) -> None:
    """And others are found by their commit, its beginning, or a ref."""
    first = write_cached(roots.hub_cache, "org/model", model_files())
    second = write_cached(roots.hub_cache, "org/model", model_files(), commit=SECOND, main=False)
    repo = roots.hub_cache / "models--org--model"
    (repo / "refs" / "pr").mkdir()
    (repo / "refs" / "pr" / "1").write_text(SECOND)
    os.utime(second, (time.time() + 100, time.time() + 100))
    assert only(models).path == first
    for revision, path in ((None, first), ("main", first), (COMMIT, first), ("ffff", second), ("pr/1", second)):
        assert models.find("org/model", revision=revision).path == path
    (repo / "refs" / "main").unlink()
    assert only(models).path == second


@pytest.mark.parametrize("revision", ["gone", "", "../../x", "/etc", "ffff\0", "a" * 300, "..", "0123/../x"])
def test_a_revision_that_is_not_here_is_named(models: LocalModels, roots: Roots, revision: str) -> None:
    """Whatever it is, it reaches no path."""
    write_cached(roots.hub_cache, "org/model", model_files())
    with pytest.raises(ModelNotFound, match="not on this machine in the revision"):
        models.find("org/model", revision=revision)


def test_other_places_have_no_revisions(models: LocalModels, roots: Roots) -> None:
    """A folder is what it is."""
    write_folder(roots.imported[0] / "mine", model_files())
    with pytest.raises(ModelNotFound):
        models.find("mine", revision="main")


@pytest.mark.parametrize("ref", ["../../../../etc", "", "main", "x" * 5000, "0123456789ABCDEF", "\0"])
def test_a_ref_that_is_no_commit_points_nowhere(models: LocalModels, roots: Roots, ref: str) -> None:
    """The newest snapshot counts as if there were none."""
    snapshot = write_cached(roots.hub_cache, "org/model", model_files())
    (roots.hub_cache / "models--org--model" / "refs" / "main").write_text(ref)
    assert only(models).path == snapshot


def test_the_best_of_several_copies_is_taken(models: LocalModels, roots: Roots) -> None:
    """A whole copy elsewhere counts more than one on its way."""
    assert roots.lmstudio is not None
    files = model_files()
    del files["model.safetensors"]
    write_cached(roots.hub_cache, "org/model", files)
    write_folder(roots.lmstudio / "org" / "model", model_files())
    assert [model.source for model in models.list()] == ["hub", "lmstudio"]
    assert models.find("org/model").source == "lmstudio"


def test_what_else_lies_in_the_cache_is_no_model(models: LocalModels, roots: Roots) -> None:
    """Data sets, locks, records of files that do not exist."""
    for folder in (
        "datasets--a--b/snapshots/x",
        ".locks/models--a--b",
        "models--a--b/.no_exist/x",
        "models--c--d/refs",
    ):
        (roots.hub_cache / folder).mkdir(parents=True)
    (roots.hub_cache / "models--e--f").write_text("a file")
    (roots.hub_cache / "version.txt").write_text("1")
    assert [model.id for model in models.list()] == ["mlxm/tiny"]
    with pytest.raises(ModelNotFound):
        models.find("a/b")


def test_the_built_in_model_is_listed_when_there_is_no_other(models: LocalModels, roots: Roots) -> None:
    """Made when it is asked for, and out of the way as soon as there is a real one."""
    before = only(models)
    assert (before.id, before.source, before.state, before.size_bytes) == ("mlxm/tiny", "builtin", "ready", 0)
    assert not before.path.exists()
    made = models.find("mlxm/tiny")
    assert (made.path, made.runnable) == (before.path, True)
    assert made.characteristics is not None
    assert made.characteristics.family == "llama"
    assert only(models) == made
    write_cached(roots.hub_cache, "org/model", model_files())
    assert [model.id for model in models.list()] == ["org/model"]
    assert models.find("mlxm/tiny") == made


@pytest.mark.parametrize("name", ["org/modle", "Model", "ORG/MODEL"])
def test_a_model_that_is_not_here_has_near_names(models: LocalModels, roots: Roots, name: str) -> None:
    """One model goes by one name, also on a disk that does not tell capitals apart."""
    write_cached(roots.hub_cache, "org/model", model_files())
    with pytest.raises(ModelNotFound) as caught:
        models.find(name)
    assert caught.value.hint == "Near names: org/model."
    with pytest.raises(ModelNotFound) as caught:
        models.find("zzzzzz")
    assert caught.value.hint == "List what is here with: mlxm ls."
    with pytest.raises(InvalidRequest):
        models.find("../model")


def test_roots_that_are_not_there_hold_nothing(tmp_path: Path, mlxm_home: Path) -> None:
    """The cache and LM Studio's folder may be missing, an imported folder may not."""
    gone = tmp_path / "gone"
    models = LocalModels(Roots(home=mlxm_home, hub_cache=gone, lmstudio=gone, imported=(gone,)))
    found = models.scan()
    assert [model.id for model in found.models] == ["mlxm/tiny"]
    assert found.problems == (f"{gone}, which was imported, is not there.",)


def test_folders_that_cannot_be_read_are_named(models: LocalModels, roots: Roots, tmp_path: Path) -> None:
    """The others are listed all the same."""
    assert roots.lmstudio is not None
    write_cached(roots.hub_cache, "org/model", model_files())
    write_cached(roots.hub_cache, "org/shut", model_files())
    write_folder(roots.lmstudio / "owner" / "model", model_files())
    write_folder(roots.imported[0] / "closed", model_files())
    shut = [roots.hub_cache / "models--org--shut" / "blobs", roots.lmstudio / "owner", roots.imported[0] / "closed"]
    open_parents(tmp_path)
    for folder in shut:
        folder.chmod(0)
    try:
        with as_nobody():
            found = models.scan()
    finally:
        for folder in shut:
            folder.chmod(0o755)
    assert [model.id for model in found.models if model.state == "ready"] == ["org/model"]
    for folder in (roots.hub_cache / "models--org--shut", *shut[1:]):
        assert [problem for problem in found.problems if problem.startswith(f"{folder} cannot be read: Permission")]


def test_a_snapshot_that_cannot_be_read_is_a_broken_model(models: LocalModels, roots: Roots, tmp_path: Path) -> None:
    """It is there, and its name is known."""
    snapshot = write_cached(roots.hub_cache, "org/model", model_files())
    open_parents(tmp_path)
    snapshot.chmod(0)
    try:
        with as_nobody():
            model = only(models)
    finally:
        snapshot.chmod(0o755)
    assert (model.id, model.state) == ("org/model", "broken")
    assert model.state_reason == f"cannot be read: {snapshot}: Permission denied"


@pytest.mark.usefixtures("models")
def test_roots_that_cannot_be_read_are_named(roots: Roots, tmp_path: Path) -> None:
    """And hold no model that could be found."""
    assert roots.lmstudio is not None
    shut = tmp_path / "shut"
    write_folder(shut / "mine", model_files())
    write_folder(roots.lmstudio / "org" / "model", model_files())
    reaching = msgspec.structs.replace(roots, imported=(shut / "mine",))
    open_parents(tmp_path)
    for folder in (shut, roots.lmstudio, roots.hub_cache):
        folder.chmod(0)
    try:
        with as_nobody():
            found = LocalModels(reaching).scan()
            with pytest.raises(ModelNotFound):
                LocalModels(reaching).find("org/model")
    finally:
        for folder in (shut, roots.lmstudio, roots.hub_cache):
            folder.chmod(0o755)
    assert [problem.partition(" cannot be read: Permission denied")[0] for problem in found.problems] == [
        str(roots.hub_cache),
        str(roots.lmstudio),
        str(shut / "mine"),
    ]


def test_links_in_circles_and_out_of_the_roots_are_no_models(models: LocalModels, roots: Roots, tmp_path: Path) -> None:
    """They end nothing, and what leads elsewhere is named."""
    assert roots.lmstudio is not None
    victim = write_folder(tmp_path / "victim", model_files())
    write_cached(roots.hub_cache, "org/model", model_files())
    (roots.hub_cache / "models--org--loop").symlink_to("models--org--loop")
    (roots.hub_cache / "models--org--out").symlink_to(victim)
    (roots.lmstudio / "owner").mkdir()
    (roots.lmstudio / "owner" / "up").symlink_to("..")
    (roots.lmstudio / "owner" / "loop").symlink_to("loop")
    (roots.lmstudio / "owner" / "out").symlink_to(victim)
    (roots.lmstudio / "away").symlink_to(victim.parent)
    (roots.imported[0] / "up").symlink_to("..")
    (roots.imported[0] / "out").symlink_to(victim)
    found = models.scan()
    assert [model.id for model in found.models if model.runnable] == ["org/model"]
    assert len([problem for problem in found.problems if "leads out of" in problem]) == 4
    for name in ("org/out", "owner/out"):
        with pytest.raises((ModelNotFound, InvalidRequest)):
            models.find(name)


def test_names_that_are_none_are_left_out_aloud(models: LocalModels, roots: Roots) -> None:
    """A folder may have any name, a model may not."""
    assert roots.lmstudio is not None
    write_folder(roots.lmstudio / "org" / "a model", model_files())
    write_folder(roots.imported[0] / "-x", model_files())
    found = models.scan()
    assert [model.id for model in found.models] == ["mlxm/tiny"]
    assert sorted(problem.rpartition(": ")[2] for problem in found.problems) == [
        "'-x' is no name of a model.",
        "'org/a model' is no name of a model.",
    ]


def test_a_list_is_remembered_and_forgotten_with_the_files(models: LocalModels, roots: Roots) -> None:
    """What has not changed is not read again, what has changed is."""
    snapshot = write_cached(roots.hub_cache, "org/model", model_files())
    assert only(models).state == "ready"
    remembered = roots.home / "cache" / "characteristics.json"
    first = remembered.read_bytes()
    assert only(models).state == "ready"
    assert remembered.read_bytes() == first
    weights = (snapshot / "model.safetensors").resolve()
    weights.write_bytes(weights.read_bytes()[:-1])
    assert only(models).state == "broken"
    assert remembered.read_bytes() != first
    assert remembered.parent.stat().st_mode & 0o777 == 0o700


def test_what_is_remembered_is_used(models: LocalModels, roots: Roots) -> None:
    """Seen by changing it."""
    write_cached(roots.hub_cache, "org/model", model_files())
    assert only(models).runnable
    remembered = roots.home / "cache" / "characteristics.json"
    remembered.write_bytes(remembered.read_bytes().replace(b'"qwen3"', b'"qwen9"'))
    found = only(models).characteristics
    assert found is not None
    assert found.architecture == "qwen9"


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"version": "0/0", "entries": {}}', b'{"a":' * 100_000, b"\xff" * 64]
)
def test_a_damaged_memory_is_written_anew(models: LocalModels, roots: Roots, content: bytes) -> None:
    """It only ever saves time."""
    write_cached(roots.hub_cache, "org/model", model_files())
    remembered = roots.home / "cache" / "characteristics.json"
    remembered.parent.mkdir(parents=True)
    remembered.write_bytes(content)
    assert only(models).state == "ready"
    assert msgspec.json.decode(remembered.read_bytes())["entries"]


def test_a_memory_that_cannot_be_written_keeps_nobody_from_their_models(models: LocalModels, roots: Roots) -> None:
    """A home on a disk that is full or may only be read."""
    write_cached(roots.hub_cache, "org/model", model_files())
    roots.home.mkdir()
    (roots.home / "cache").write_text("a file where a folder should be")
    assert only(models).state == "ready"


def test_a_write_that_fails_leaves_nothing_behind(models: LocalModels, roots: Roots) -> None:
    """Neither half a memory nor its scratch file."""
    write_cached(roots.hub_cache, "org/model", model_files())
    (roots.home / "cache" / "characteristics.json" / "x").mkdir(parents=True)
    assert only(models).state == "ready"
    assert [path.name for path in (roots.home / "cache").iterdir()] == ["characteristics.json"]


def test_a_memory_too_large_to_be_ours_is_not_read(roots: Roots) -> None:
    """Whatever grew there, reading it would cost more than it saves."""
    remembered = roots.home / "cache" / "characteristics.json"
    remembered.parent.mkdir(parents=True)
    with remembered.open("wb") as file:
        file.truncate(1 << 30)
    memo = Memo.open(roots.home)
    assert memo.recall(roots.home, "") is None


def test_three_hundred_models_are_listed_quickly(
    models: LocalModels, roots: Roots, record_property: pytest.RecordProperty
) -> None:
    """The figure is printed; what is asserted is that a second look reads no model file."""
    shapes = {f"model.layers.{place}.weight": ("U32", (8, 8)) for place in range(300)} | dict(PLAIN)
    files = model_files(CONFIG | {"quantization": {"bits": 4, "group_size": 64}}, shapes)
    for place in range(300):
        write_cached(roots.hub_cache, f"org/model-{place}", files)
    opened: list[str] = []
    watching = [False]

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if watching and watching[0] and event == "open" and isinstance(arguments[0], str):
            opened.append(arguments[0])

    sys.addaudithook(watch)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        watching[0] = bool(seconds)
        assert len(models.list()) == 300
        seconds.append(time.perf_counter() - start)
    watching.clear()
    record_property("first_s", seconds[0])
    record_property("again_s", min(seconds[1:]))
    print(f"300 models: {seconds[0]:.3f} s at first, {min(seconds[1:]):.3f} s again")  # noqa: T201
    assert [path for path in opened if path.endswith((".safetensors", "config.json"))] == []


def test_safetensors_without_a_configuration_are_incomplete(models: LocalModels, roots: Roots) -> None:
    """Nothing can be run without it, and it is what comes first in a download."""
    write_folder(roots.imported[0] / "mine", {"model.safetensors": safetensors(PLAIN)})
    assert (only(models).state, only(models).state_reason) == ("incomplete", "config.json is missing")
    assert only(models).runnable_reason == "it is incomplete"
