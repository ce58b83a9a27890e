import io
import json
import os
from pathlib import Path

import pytest

from mlxm.cli.main import main
from tests.cli.model_cache import Cabinet, Terminal, check_golden, text_files, write_weights

NAME = "a/b"


@pytest.fixture
def snapshot(cabinet: Cabinet) -> Path:
    """A small whole model."""
    return cabinet.add(NAME, text_files(), weights_bytes=10_000_000)


def test_whole_model_is_told_file_by_file(cabinet: Cabinet, snapshot: Path) -> None:
    """With what each file was judged by: its hash, where the cache has one."""
    ran = cabinet.run("verify", NAME)

    assert (ran.code, ran.err) == (0, "")
    assert (snapshot / "model.safetensors").is_symlink()
    check_golden("verify.piped.txt", ran.out)


@pytest.mark.parametrize("columns", [80, 120])
def test_list_fits_a_terminal(cabinet: Cabinet, snapshot: Path, columns: int) -> None:
    """The same, laid out for eyes."""
    assert snapshot.is_dir()
    check_golden(f"verify.{columns}.txt", cabinet.show("verify", NAME, columns=columns))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_one_changed_byte_is_found(cabinet: Cabinet, snapshot: Path, name: str) -> None:
    """In small files and large ones, whatever the headers say."""
    blob = (snapshot / name).resolve()
    with blob.open("r+b") as file:
        file.seek(-2, os.SEEK_END)
        file.write(b"?")
    ran = cabinet.run("verify", NAME)

    assert ran.code == 1
    assert ran.err == f"error: {NAME} is damaged: {name}.\nhint: mlxm pull {NAME}\n"
    (bad,) = [line for line in ran.out.splitlines()[1:] if not line.endswith("ok")]
    assert bad.startswith(name)
    assert bad.endswith("it does not have the hash that it is stored under")


def test_missing_content_is_found(cabinet: Cabinet, snapshot: Path) -> None:
    """A link to nothing is no file."""
    (snapshot / "config.json").resolve().unlink()
    ran = cabinet.run("verify", NAME, "--json")

    assert ran.code == 1
    (bad,) = [each for each in json.loads(ran.out) if each["problem"] is not None]
    assert (bad["path"], bad["problem"]) == ("config.json", "its content is missing")
    assert json.loads(ran.err)["error"]["code"] == "model_broken"


def test_model_that_is_not_all_here_is_not_whole(cabinet: Cabinet) -> None:
    """Although every file that is there is as it should be."""
    cabinet.add(NAME, text_files())
    ran = cabinet.run("verify", NAME)

    assert ran.code == 1
    assert ran.err.startswith(f"error: {NAME} is incomplete: its weights are missing\n")


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("model.safetensors", b"\0" * 100, "model.safetensors"),
        ("tokenizer.json", b"{", "it is not JSON"),
        ("tokenizer.json", b"[" * 200_000, "it is not JSON"),
    ],
)
def test_files_without_a_hash_are_judged_by_themselves(
    cabinet: Cabinet, tmp_path: Path, name: str, content: bytes, problem: str
) -> None:
    """In a folder of the user's own nothing else is known."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for file_name, text in text_files().items():
        (folder / file_name).write_bytes(text)
    write_weights(folder / "model.safetensors", 10_000_000, 4, "model.embed_tokens")
    cabinet.run("import", str(folder))
    assert cabinet.run("verify", "mine").code == 0
    (folder / name).write_bytes(content)
    ran = cabinet.run("verify", "mine")

    assert ran.code == 1
    assert problem in ran.out
    assert ran.err.endswith("hint: Put a good copy of these files in their place.\n")


def test_file_that_cannot_be_read_is_told(cabinet: Cabinet, snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As what the system says of it."""

    def refuse(*_: object) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("mlxm.upkeep.checking.is_as_said", refuse)
    assert snapshot.is_dir()
    assert "it cannot be read: Permission denied" in cabinet.run("verify", NAME).out


def test_progress_is_shown_to_a_person_alone(cabinet: Cabinet, snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On stderr, while the result goes where it is wanted."""
    assert snapshot.is_dir()
    out, err = io.StringIO(), Terminal()
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", err)
    monkeypatch.setenv("TERM", "xterm")

    assert main(["verify", NAME]) == 0
    assert "reading" in err.getvalue()
    assert "reading" not in out.getvalue()
    assert cabinet.hub_cache.is_dir()
