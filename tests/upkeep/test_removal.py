import os
import random
from pathlib import Path

import pytest

from mlxm.catalog.local import LocalModel, Roots
from mlxm.errors import Forbidden, InvalidRequest, MlxmError
from mlxm.shelf import Shelf
from mlxm.upkeep.leftovers import Leftover, remove_leftover
from mlxm.upkeep.removal import plan_removal, remove
from mlxm.upkeep.trash import remove_folder

PARTS = ("..", ".", "", "/", "~", "a", "models--a--b", "\0", "\n", "é", "\u202e", "%2e%2e", "\\", "--", "a" * 300, "C:")
NUM_NAMES = 10_000


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with one model, and things around it that must stay."""
    for name in ("hub/models--a--b/blobs", "hub/datasets--a--b", "outside/models--a--b", "hub/.locks"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").write_text("kept")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder."""
    return {
        os.fspath(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def model(name: str, path: Path, source: str = "hub") -> LocalModel:
    """A model that claims to lie anywhere."""
    return LocalModel(
        id=name, path=path, source=source, state="ready", runnable=True, size_bytes=0, disk_bytes=0  # type: ignore[arg-type]
    )  # fmt: skip


def test_no_name_reaches_anything_else(world: Path) -> None:
    """Ten thousand names made of all that is dangerous remove nothing but the one model."""
    roots = Roots(home=world / "home", hub_cache=world / "hub")
    before = contents(world)
    chance = random.Random(7)
    for _ in range(NUM_NAMES):
        name = "/".join(chance.choices(PARTS, k=chance.randint(1, 4)))
        try:
            plan = plan_removal(model(name, world / "outside"), roots)
            if plan.folder is not None and plan.folder.exists() and plan.folder != world / "hub" / "models--a--b":
                remove(plan)
        except MlxmError:
            continue

    assert contents(world) == before


def test_no_name_is_found_outside(world: Path, mlxm_home: Path) -> None:
    """Looking is as bounded as removing: a typed error, or the model itself."""
    shelf = Shelf(mlxm_home)
    chance = random.Random(8)
    for _ in range(300):
        name = "/".join(chance.choices(PARTS, k=chance.randint(1, 4)))
        try:
            found = shelf.find(name)
        except MlxmError:
            continue
        assert found.path.is_relative_to(world / "hub") or found.path.is_relative_to(mlxm_home)


@pytest.mark.parametrize("place", ["outside/models--a--b", ".", "hub", "hub/../outside"])
def test_folder_outside_its_root_is_refused(world: Path, place: str) -> None:
    """The root itself as well."""
    before = contents(world)
    with pytest.raises(Forbidden):
        remove_folder(world / place, world / "hub")

    assert contents(world) == before


def test_link_goes_and_what_it_leads_to_stays(world: Path) -> None:
    """Within the root a link is removed as a link; one that leads out is left."""
    (world / "hub" / "models--c--d").symlink_to("models--a--b")
    (world / "hub" / "models--e--f").symlink_to("../outside/models--a--b")
    remove_folder(world / "hub" / "models--c--d", world / "hub")
    with pytest.raises(InvalidRequest):
        plan_removal(model("e/f", world / "hub"), Roots(home=world, hub_cache=world / "hub"))

    assert not (world / "hub" / "models--c--d").is_symlink()
    assert (world / "hub" / "models--a--b" / "blobs" / "file").exists()
    assert (world / "outside" / "models--a--b" / "file").exists()


def test_leftover_takes_no_content_from_outside(world: Path) -> None:
    """A link in a snapshot may lead anywhere."""
    outside = world / "outside" / "models--a--b" / "file"
    part = world / "hub" / "models--a--b" / "blobs" / "file"
    leftover = Leftover(what="unused content", name="a/b", path=part, size_bytes=4, contents=(outside,))
    remove_leftover(leftover, world / "hub")

    assert outside.exists()
    assert not part.exists()


def test_place_without_a_root_is_only_forgotten(world: Path) -> None:
    """A model of LM Studio whose folder is not known any more loses nothing."""
    plan = plan_removal(model("lm/x", world / "outside", "lmstudio"), Roots(home=world, hub_cache=world / "hub"))
    before = contents(world)
    remove(plan)

    assert (plan.folder, plan.forgotten) == (None, None)
    assert contents(world) == before
