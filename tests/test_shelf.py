import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from mlxm.errors import InvalidRequest, MlxmError, ModelBroken, ModelNotFound
from mlxm.hub import Hub, HubSettings
from mlxm.router import Router
from mlxm.shelf import Shelf
from mlxm.store.aliases import Aliases
from mlxm.store.db import Database
from mlxm.store.imports import Imports
from mlxm.store.look import DATABASE_NAME
from mlxm.types import ChatRequest, Ended, Message, TextPart

NAME = "acme/tiny-4bit"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A person's Hub cache of their own."""
    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("mlxm.shelf.LM_STUDIO", tmp_path / "user" / ".lmstudio" / "models")
    return cache


@pytest.fixture
def cached(hub_cache: Path, tiny_folder: Path) -> Path:
    """The built-in model as if it had been downloaded under another name; its snapshot."""
    snapshot = hub_cache / "models--acme--tiny-4bit" / "snapshots" / COMMIT
    shutil.copytree(tiny_folder, snapshot)
    return snapshot


def with_database(home: Path, work: Callable[[Database], Awaitable[object]]) -> None:
    """Change what is stored in a home."""

    async def run() -> None:
        async with await Database.open(home / DATABASE_NAME) as db:
            await work(db)

    asyncio.run(run())


def test_model_is_found_by_id_and_by_alias(mlxm_home: Path, cached: Path) -> None:
    """An alias that was set by another process is known at once."""
    shelf = Shelf(mlxm_home)
    assert shelf.find(NAME).path == cached
    assert shelf.aliases() == {}
    with_database(mlxm_home, lambda db: Aliases(db).set("small", NAME))

    assert shelf.find("small").id == NAME
    assert shelf.names() == (NAME, "mlxm/tiny", "small")


def test_imported_folders_and_those_of_lm_studio_count(mlxm_home: Path, hub_cache: Path, tiny_folder: Path) -> None:
    """Wherever they lie."""
    lmstudio = hub_cache.parent / "user" / ".lmstudio" / "models" / "lm" / "studio"
    shutil.copytree(tiny_folder, lmstudio)
    imported = shutil.copytree(tiny_folder, hub_cache.parent / "mine")
    with_database(mlxm_home, lambda db: Imports(db).add(imported))
    shelf = Shelf(mlxm_home)

    assert [(model.id, model.source) for model in shelf.scan().models] == [
        ("lm/studio", "lmstudio"),
        ("mine", "import"),
    ]
    assert shelf.roots().imported == (imported,)


@pytest.mark.usefixtures("hub_cache")
def test_what_is_not_here_is_told_apart_from_what_is_no_name(mlxm_home: Path) -> None:
    """The one may be fetched, the other never."""
    with pytest.raises(ModelNotFound):
        Shelf(mlxm_home).find("acme/gone")
    with pytest.raises(InvalidRequest):
        Shelf(mlxm_home).find("../x")


def resolve(home: Path, name: str) -> tuple[str, Path]:
    """The name and the folder that a request for `name` gets."""
    model = asyncio.run(Router(home).resolve(name))
    return model.name, model.folder


def test_request_reaches_a_downloaded_model_by_id_and_by_alias(mlxm_home: Path, cached: Path) -> None:
    """The model is one, whatever it is called."""
    with_database(mlxm_home, lambda db: Aliases(db).set("small", NAME))

    assert resolve(mlxm_home, NAME) == resolve(mlxm_home, "small") == (NAME, cached)
    assert Router(mlxm_home).names() == (NAME, "mlxm/tiny", "small")


def test_alias_may_stand_for_the_built_in_model(mlxm_home: Path, hub_cache: Path) -> None:
    """Which is made then."""
    assert hub_cache.is_dir()
    with_database(mlxm_home, lambda db: Aliases(db).set("toy", "mlxm/tiny"))

    assert resolve(mlxm_home, "toy")[0] == "mlxm/tiny"


def break_weights(snapshot: Path) -> None:
    """Cut the weights."""
    weights = snapshot / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def take_weights(snapshot: Path) -> None:
    """Leave all but the weights."""
    (snapshot / "model.safetensors").unlink()


def leave_torch(snapshot: Path) -> None:
    """Leave weights that mlxm does not read."""
    (snapshot / "model.safetensors").rename(snapshot / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "message", "hint"),
    [
        (break_weights, "acme/tiny-4bit is broken: ", "mlxm pull acme/tiny-4bit"),
        (take_weights, "acme/tiny-4bit is incomplete: ", "mlxm pull acme/tiny-4bit"),
        (leave_torch, "acme/tiny-4bit cannot be run: ", None),
    ],
)
def test_model_that_cannot_be_run_says_why(
    mlxm_home: Path, cached: Path, damage: Callable[[Path], None], message: str, hint: str | None
) -> None:
    """Before a worker is started for it."""
    damage(cached)
    with pytest.raises(ModelBroken, match=message) as caught:
        resolve(mlxm_home, NAME)
    assert caught.value.hint == hint


@pytest.mark.parametrize("name", ["acme/tiny", "../../etc/passwd", "", "a\0b", "/", "acme/tiny-4bit/x", "ä" * 5000])
def test_unknown_name_is_not_found_with_near_names(mlxm_home: Path, cached: Path, name: str) -> None:
    """What can be no name is not found either: over the network that is the same."""
    assert cached.is_dir()
    with pytest.raises(ModelNotFound) as caught:
        resolve(mlxm_home, name)

    assert caught.value.hint is not None
    assert caught.value.param == "model"
    assert name != "acme/tiny" or caught.value.hint == f"Near names: {NAME}, mlxm/tiny."


def test_downloaded_model_answers_without_having_been_loaded(mlxm_home: Path, cached: Path) -> None:
    """By its id, through all that a request passes."""
    assert cached.is_dir()

    async def run() -> None:
        async with Hub(HubSettings(home=mlxm_home)) as hub:
            assert hub.models() == (NAME, "mlxm/tiny")
            request = ChatRequest(
                request_id="a",
                model=NAME,
                messages=(Message(role="user", content=(TextPart("Hello"),)),),
                max_tokens=2,
            )
            events = [event async for event in hub.chat(request)]
            assert isinstance(events[-1], Ended)

    asyncio.run(run())


@pytest.mark.usefixtures("hub_cache")
def test_downloads_are_made_once_and_end_with_the_hub(mlxm_home: Path) -> None:
    """However many ask for them at the same time."""

    async def run() -> None:
        async with Hub(HubSettings(home=mlxm_home)) as hub:
            first, second = await asyncio.gather(hub.downloads(), hub.downloads())
            assert first is second
            job = first.start(NAME)
            with pytest.raises(MlxmError):
                await job.wait()
            assert job.progress.error is not None
            assert job.progress.error.code == "offline"

    asyncio.run(run())
