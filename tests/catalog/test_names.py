from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlxm.catalog.local import LocalModels, Roots
from mlxm.catalog.names import hub_folder, inside, name_of_hub_folder, parse_name
from mlxm.errors import InvalidRequest, ModelNotFound
from tests.catalog.folders import model_files, write_cached, write_folder

NUM_NAMES = 10_000
PIECES = (
    *(
        "..",
        ".",
        "/",
        "//",
        "\\",
        "~",
        "\0",
        "\n",
        "\t",
        " ",
        "-",
        "--",
        "_",
        "%2e%2e",
        "%00",
        "$HOME",
        "C:",
        "file://",
    ),
    *("models--", "snapshots", "refs", "blobs", "etc", "passwd", "a", "Model", "9", "é", "\u202e", "\uff0e", "\ud800"),
    *("x" * 97, "victim", "org", ".safetensors", "'", '"', ";", "|", "*", "?", "[", "]"),
)
TRAVERSALS = (
    *("../victim", "../../victim", "/etc/passwd", "org/../../victim", "org/..", "..", "org/\0", "~root", "a/../victim"),
    *("models--org--victim/../..", "org/./victim", "./victim", "org//victim", "..%2fvictim", "org/victim/../../.."),
)


def hostile_names() -> Iterator[str]:
    """Names put together from what has ever led out of a folder."""
    rng = random.Random(3)
    yield from TRAVERSALS
    for _ in range(NUM_NAMES - len(TRAVERSALS)):
        yield "".join(rng.choice(PIECES) for _ in range(rng.randrange(1, 7)))


@pytest.fixture
def opened() -> Iterator[Callable[[], list[str]]]:
    """Every path that is opened or listed while the test runs."""
    seen: list[str] = []
    watching = [True]

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if watching and event in ("open", "os.scandir", "os.listdir") and isinstance(arguments[0], str):
            seen.append(arguments[0])

    sys.addaudithook(watch)
    yield lambda: seen
    watching.clear()


def test_ten_thousand_names_reach_no_path_outside_the_roots(
    tmp_path: Path, models: LocalModels, roots: Roots, opened: Callable[[], list[str]]
) -> None:
    """Traversal, absolute paths, control characters, other alphabets: refused, or looked for in the right place."""
    write_folder(tmp_path / "victim", model_files())
    write_cached(roots.hub_cache, "org/model", model_files())
    assert models.find("org/model").state == "ready"
    opened().clear()
    refused = 0
    for text in hostile_names():
        try:
            folder = hub_folder(parse_name(text), roots.hub_cache)
        except InvalidRequest:
            refused += 1
            with pytest.raises(InvalidRequest):
                models.find(text)
            continue
        assert folder.parent == roots.hub_cache
        assert inside(roots.hub_cache, folder)
        with pytest.raises(ModelNotFound):
            models.find(text)
    assert NUM_NAMES // 2 < refused < NUM_NAMES
    allowed = tuple(os.fspath(root) for root in (roots.home, roots.hub_cache, roots.lmstudio, *roots.imported) if root)
    assert opened()
    assert [path for path in opened() if not path.startswith(allowed)] == []


def test_a_folder_of_the_cache_has_one_name(tmp_path: Path) -> None:
    """There and back again."""
    for text in ("gpt2", "org/model", "a/b.c_d-e"):
        name = parse_name(text)
        assert name_of_hub_folder(hub_folder(name, tmp_path).name) == name
    for folder in ("datasets--a--b", ".locks", "models--", "models--a--b--c", "models--a----b", "models--..--b", "x"):
        assert name_of_hub_folder(folder) is None


def test_a_link_in_the_cache_may_not_lead_out_of_it(tmp_path: Path) -> None:
    """Whoever removes the model would remove what the link points to."""
    cache, victim = tmp_path / "hub", tmp_path / "victim"
    cache.mkdir()
    victim.mkdir()
    (cache / "models--org--model").symlink_to(victim)
    with pytest.raises(InvalidRequest, match="leads out of"):
        hub_folder(parse_name("org/model"), cache)
    (cache / "models--org--model").unlink()
    (cache / "models--org--model").symlink_to("models--org--model")
    with pytest.raises(InvalidRequest):
        hub_folder(parse_name("org/model"), cache)


def test_the_cache_itself_may_be_a_link(tmp_path: Path) -> None:
    """Many people keep it on another disk."""
    (tmp_path / "disk").mkdir()
    cache = tmp_path / "hub"
    cache.symlink_to(tmp_path / "disk")
    assert hub_folder(parse_name("org/model"), cache) == cache / "models--org--model"
