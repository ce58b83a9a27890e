import asyncio
import json
import shutil
from pathlib import Path

import pytest

from mlxm.errors import ModelBroken, ModelNotFound
from mlxm.pool.pool import LocalModel
from mlxm.router import Router


def resolve(router: Router, name: str, *, may_be_path: bool = False) -> LocalModel:
    """The model of a name."""
    return asyncio.run(router.resolve(name, may_be_path=may_be_path))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that looks like a model's."""
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 77}))
    return made


def test_the_built_in_model_is_built_when_it_is_first_asked_for(tmp_path: Path) -> None:
    """And again when somebody has removed it."""
    router = Router(tmp_path)
    model = resolve(router, "mlxm/tiny")
    assert (model.name, model.context_length) == ("mlxm/tiny", 8192)
    assert model.folder.is_relative_to(tmp_path)
    written = (model.folder / "config.json").stat().st_mtime_ns
    assert resolve(router, "mlxm/tiny") == model
    assert (model.folder / "config.json").stat().st_mtime_ns == written
    model.folder.rename(tmp_path / "elsewhere")
    assert (resolve(router, "mlxm/tiny").folder / "config.json").is_file()


def test_near_names_are_offered(tmp_path: Path) -> None:
    """A typo is easily mended."""
    with pytest.raises(ModelNotFound, match="'mlxm/tinny'") as caught:
        resolve(Router(tmp_path), "mlxm/tinny")
    assert caught.value.hint == "Near names: mlxm/tiny."
    with pytest.raises(ModelNotFound) as caught:
        resolve(Router(tmp_path), "qqqq")
    assert caught.value.hint == "There is: mlxm/tiny."


def test_a_folder_is_a_name_on_this_machine_alone(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over the network a path is a name that nobody knows."""
    router = Router(tmp_path)
    expected = LocalModel(name=str(folder), folder=folder, context_length=77)
    monkeypatch.chdir(tmp_path)
    for name in (str(folder), "./model", "../" + tmp_path.name + "/model"):
        assert resolve(router, name, may_be_path=True) == expected
        with pytest.raises(ModelNotFound):
            resolve(router, name)
    with pytest.raises(ModelNotFound):
        resolve(router, "model", may_be_path=True)


def test_a_folder_without_a_model_is_reported(tmp_path: Path, folder: Path) -> None:
    """As is one with a broken model."""
    router = Router(tmp_path)
    with pytest.raises(ModelNotFound, match=r"has no config\.json"):
        resolve(router, str(tmp_path), may_be_path=True)
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelBroken, match=r"config\.json"):
        resolve(router, str(folder), may_be_path=True)


def test_a_model_whose_files_are_wrong_is_left_out_of_the_list(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are listed, and who asks for it is told what is wrong."""
    cache = tmp_path / "cache"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    for name in ("sound", "wrong"):
        repo = cache / f"models--org--{name}"
        shutil.copytree(tiny_folder, repo / "snapshots" / "0123456789abcdef0123456789abcdef01234567")
        (repo / "refs").mkdir()
        (repo / "refs" / "main").write_text("0123456789abcdef0123456789abcdef01234567")
    snapshot = cache / "models--org--wrong" / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    (snapshot / "generation_config.json").write_text('{"top_p": 1.5}')
    router = Router(tmp_path / "home")
    assert [info.name for info in router.listing()] == ["mlxm/tiny", "org/sound"]
    with pytest.raises(ModelBroken, match="top_p"):
        resolve(router, "org/wrong")
