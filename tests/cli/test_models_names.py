import json
from pathlib import Path

import pytest

from tests.cli.model_cache import Cabinet, text_files, write_weights

NAME = "mlx-community/Qwen3-4B-4bit"


def write_model(folder: Path) -> Path:
    """A small whole model in a plain folder."""
    folder.mkdir(parents=True)
    for name, content in text_files().items():
        (folder / name).write_bytes(content)
    write_weights(folder / "model.safetensors", 10_000_000, 4, "model.embed_tokens")
    return folder


def test_imported_folder_is_a_model_under_its_own_name(cabinet: Cabinet, tmp_path: Path) -> None:
    """It is used where it lies."""
    folder = write_model(tmp_path / "my-finetune")
    ran = cabinet.run("import", str(folder))

    assert (ran.code, ran.out) == (0, f"my-finetune  {folder}\n")
    assert ran.err == "next: mlxm show my-finetune\n"
    assert cabinet.run("ls", "-q", "--filter", "source=import").out == "my-finetune\n"
    assert json.loads(cabinet.run("show", "my-finetune", "--json").out)["path"] == str(folder)


def test_imported_folder_may_get_another_name_at_once(cabinet: Cabinet, tmp_path: Path) -> None:
    """Which is then the one to use."""
    ran = cabinet.run("import", str(write_model(tmp_path / "v7")), "--alias", "mine", "--json")

    assert [each["id"] for each in json.loads(ran.out)] == ["v7"]
    assert json.loads(cabinet.run("show", "mine", "--json").out)["id"] == "v7"


def test_folder_of_models_brings_them_all(cabinet: Cabinet, tmp_path: Path) -> None:
    """By their owners; an alias would not know which one it means."""
    write_model(tmp_path / "models" / "me" / "one")
    write_model(tmp_path / "models" / "me" / "two")
    assert cabinet.run("import", str(tmp_path / "models"), "--alias", "x").code == 2
    assert cabinet.run("ls", "-q").out == "mlxm/tiny\n"
    ran = cabinet.run("import", str(tmp_path / "models"))

    assert [line.split()[0] for line in ran.out.splitlines()] == ["me/one", "me/two"]


def test_imported_folder_that_is_not_whole_is_told(cabinet: Cabinet, tmp_path: Path) -> None:
    """It is known all the same: it may be whole tomorrow."""
    folder = write_model(tmp_path / "half")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    ran = cabinet.run("import", str(folder))

    assert ran.code == 0
    assert "half is incomplete: 1 weight file is missing" in ran.err


def test_imported_folder_that_cannot_be_run_is_told(cabinet: Cabinet, tmp_path: Path) -> None:
    """With the reason that the list has too."""
    folder = write_model(tmp_path / "torch")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    ran = cabinet.run("import", str(folder))

    assert (ran.code, ran.out) == (0, f"torch  {folder}\n")
    assert ran.err.startswith("torch is unsupported: its weights are PyTorch")
    assert ran.err.splitlines()[0].removeprefix("torch is ") in cabinet.run("show", "torch").out


def test_folder_in_an_imported_one_is_refused(cabinet: Cabinet, tmp_path: Path) -> None:
    """Its model is known already, by the name that it has there."""
    folder = write_model(tmp_path / "models" / "me" / "one")
    assert cabinet.run("import", str(tmp_path / "models")).code == 0
    ran = cabinet.run("import", str(folder))

    assert ran.code == 9
    assert ran.err.startswith(f"error: {folder} lies in {tmp_path / 'models'}, which is imported already.\n")
    assert cabinet.run("ls", "-q", "--filter", "source=import").out == "me/one\n"


def test_folder_without_a_model_is_refused(cabinet: Cabinet, tmp_path: Path) -> None:
    """So is what is no folder, and what is imported already."""
    (tmp_path / "empty").mkdir()
    folder = write_model(tmp_path / "good")

    assert cabinet.run("import", str(tmp_path / "nothing")).code == 2
    assert cabinet.run("import", str(tmp_path / "empty")).err.startswith(f"error: {tmp_path / 'empty'} holds no model.")
    assert cabinet.run("import", str(folder)).code == 0
    assert cabinet.run("import", str(folder)).code == 9


def test_folder_whose_name_is_none_says_why(cabinet: Cabinet, tmp_path: Path) -> None:
    """It could not be asked for."""
    ran = cabinet.run("import", str(write_model(tmp_path / "two  words")))

    assert ran.code == 2
    assert "is no name of a model" in ran.err


def test_alias_is_a_name_like_any_other(full_cabinet: Cabinet) -> None:
    """It is set, replaced, listed, used and forgotten."""
    assert full_cabinet.run("alias", "set", "small", NAME).out == f"small is {NAME}\n"
    assert full_cabinet.run("alias", "ls").out == f"ALIAS  MODEL\nsmall  {NAME}\n"
    assert full_cabinet.run("alias", "ls", "-q").out == "small\n"
    assert full_cabinet.run("show", "small").out.startswith(f"{NAME}\n")
    told = full_cabinet.run("alias", "set", "small", "mlx-community/Qwen3-VL-8B-8bit", "--json").out
    assert json.loads(told) == {"name": "small", "target": "mlx-community/Qwen3-VL-8B-8bit"}
    assert json.loads(full_cabinet.run("alias", "ls", "--json").out) == [json.loads(told)]
    assert full_cabinet.run("alias", "rm", "small").err == "small is forgotten.\n"
    assert full_cabinet.run("alias", "ls").err == "There are no aliases. Make one with: mlxm alias set NAME MODEL\n"


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["set", "small", "acme/gone"], 4),
        (["set", "no name", NAME], 2),
        (["set", NAME, "acme/torch-only"], 9),
        (["set", "mlxm/tiny", NAME], 9),
        (["rm", "gone"], 4),
    ],
)
def test_alias_without_sense_is_refused(full_cabinet: Cabinet, args: list[str], code: int) -> None:
    """It stands for a model that is here, and hides none."""
    assert full_cabinet.run("alias", *args).code == code
    assert full_cabinet.run("alias", "ls", "-q").out == ""
