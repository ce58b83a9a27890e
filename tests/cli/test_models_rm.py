import json
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from mlxm.downloads.lock import hold_alone
from tests.cli.model_cache import Cabinet, text_files, write_weights

NAME = "mlx-community/Qwen3-4B-4bit"
INDEX = b'{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
FOLDER = "models--mlx-community--Qwen3-4B-4bit"


def files_below(folder: Path) -> set[str]:
    """Every file and link below a folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or path.is_file()}


def answer(cabinet: Cabinet, monkeypatch: pytest.MonkeyPatch, word: str, *args: str) -> Any:
    """Run a command for a person who answers its question."""

    class Person:
        def isatty(self) -> bool:
            return True

        def readline(self) -> str:
            return f"{word}\n"

    monkeypatch.setattr("sys.stdin", Person())
    monkeypatch.setattr("builtins.input", lambda _prompt="": word)
    return cabinet.run(*args)


def test_model_goes_with_all_that_is_its_own_and_nothing_else(full_cabinet: Cabinet) -> None:
    """Contents, links and refs; the other models stay to the last byte."""
    others = {path for path in files_below(full_cabinet.hub_cache) if not path.startswith(FOLDER)}
    ran = full_cabinet.run("rm", "-y", NAME)

    assert (ran.code, ran.out) == (0, "Removed 1 model, 2.3 GB.\n")
    assert files_below(full_cabinet.hub_cache) == others
    assert sorted(path.name for path in full_cabinet.hub_cache.iterdir() if path.name.startswith(".")) == []
    assert NAME not in full_cabinet.run("ls", "-q").out.split()


def test_dry_run_removes_nothing(full_cabinet: Cabinet) -> None:
    """It says what would go, and where from."""
    before = files_below(full_cabinet.hub_cache)
    ran = full_cabinet.run("rm", "--dry-run", NAME)
    told = json.loads(full_cabinet.run("rm", "--dry-run", "--json", NAME).out)

    assert (ran.code, ran.out) == (0, "")
    assert ran.err == f"{NAME}: 2.3 GB in ~/.cache/huggingface/hub/{FOLDER}\n"
    assert [(each["id"], each["removed"]) for each in told] == [(NAME, False)]
    assert files_below(full_cabinet.hub_cache) == before


def test_nobody_to_ask_is_no_consent(full_cabinet: Cabinet) -> None:
    """In a script it takes -y."""
    ran = full_cabinet.run("rm", NAME)

    assert ran.code == 2
    assert ran.err.endswith("hint: Add -y to go on without being asked.\n")
    assert NAME in full_cabinet.run("ls", "-q").out.split()


@pytest.mark.parametrize(("word", "code", "is_gone"), [("y", 0, True), ("n", 1, False), ("", 1, False)])
def test_person_is_asked(
    full_cabinet: Cabinet, monkeypatch: pytest.MonkeyPatch, word: str, code: int, *, is_gone: bool
) -> None:
    """Only a yes is one."""
    assert answer(full_cabinet, monkeypatch, word, "rm", NAME).code == code
    assert (NAME not in full_cabinet.run("ls", "-q").out.split()) is is_gone


def test_several_models_go_together_or_not_at_all(full_cabinet: Cabinet) -> None:
    """One that is not there keeps all others from being removed."""
    before = files_below(full_cabinet.hub_cache)
    assert full_cabinet.run("rm", "-y", NAME, "acme/gone").code == 4
    assert files_below(full_cabinet.hub_cache) == before
    told = json.loads(full_cabinet.run("rm", "-y", "--json", NAME, NAME, "acme/half-here").out)

    assert [each["id"] for each in told] == [NAME, "acme/half-here"]
    assert full_cabinet.run("ls", "-q").out.split() == ["acme/torch-only", "mlx-community/Qwen3-VL-8B-8bit"]


def test_alias_that_leads_nowhere_then_is_told(full_cabinet: Cabinet) -> None:
    """It is the user's, and stays."""
    full_cabinet.run("alias", "set", "mine", NAME)
    ran = full_cabinet.run("rm", "-y", "mine")

    assert ran.code == 0
    assert ran.err.endswith("The alias mine leads nowhere now. To forget it: mlxm alias rm mine\n")


def test_model_that_is_being_fetched_stays(full_cabinet: Cabinet) -> None:
    """Its files would come back half."""
    with hold_alone(full_cabinet.hub_cache / ".locks" / FOLDER / "mlxm.lock", lambda _: None):
        ran = full_cabinet.run("rm", "-y", NAME)

    assert ran.code == 9
    assert NAME in full_cabinet.run("ls", "-q").out.split()


def test_model_that_somebody_fetches_while_we_ask_stays(full_cabinet: Cabinet, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was true before the question may not be after it."""
    with ExitStack() as held:
        lock = hold_alone(full_cabinet.hub_cache / ".locks" / FOLDER / "mlxm.lock", lambda _: None)
        monkeypatch.setattr("mlxm.cli.rm.confirm", lambda *_, **__: held.enter_context(lock))
        ran = full_cabinet.run("rm", NAME)

    assert ran.code == 9
    assert NAME in full_cabinet.run("ls", "-q").out.split()


def test_built_in_model_cannot_be_removed(cabinet: Cabinet) -> None:
    """It would be made again."""
    assert cabinet.run("rm", "-y", "mlxm/tiny").code == 2


def test_imported_folder_is_only_forgotten(cabinet: Cabinet, tmp_path: Path) -> None:
    """Its files are the user's."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, content in text_files().items():
        (folder / name).write_bytes(content)
    write_weights(folder / "model.safetensors", 10_000_000, 4, "model.embed_tokens")
    cabinet.run("import", str(folder))
    ran = cabinet.run("rm", "-y", "mine")

    assert ran.code == 0
    assert ran.err == f"mine: forget {folder}, and leave its files\n"
    assert files_below(folder) == {*text_files(), "model.safetensors"}
    assert cabinet.run("ls", "-q").out == "mlxm/tiny\n"


def test_model_that_was_imported_twice_is_forgotten_by_its_own_folder(cabinet: Cabinet, tmp_path: Path) -> None:
    """Its neighbours, which came with the folder above, stay known."""
    for name in ("one", "two"):
        folder = tmp_path / "mine" / name
        folder.mkdir(parents=True)
        for file_name, content in text_files().items():
            (folder / file_name).write_bytes(content)
        write_weights(folder / "model.safetensors", 10_000_000, 4, "model.embed_tokens")
    cabinet.run("import", str(tmp_path / "mine" / "one"))
    cabinet.run("import", str(tmp_path / "mine"))
    ran = cabinet.run("rm", "-y", "one")

    assert ran.err == f"one: forget {tmp_path / 'mine' / 'one'}, and leave its files\n"
    assert "two" in cabinet.run("ls", "-q").out.split()
    again = cabinet.run("rm", "-y", "one")

    assert again.err.endswith("Forgotten with it, for they are in that folder: two\n")
    assert cabinet.run("ls", "-q").out == "mlxm/tiny\n"


def test_folder_of_lm_studio_goes_with_its_empty_owner(cabinet: Cabinet) -> None:
    """The owner's folder stays while it holds another model."""
    root = cabinet.user / ".lmstudio" / "models"
    for name in ("lm/one", "lm/two"):
        (root / name).mkdir(parents=True)
        for file_name, content in text_files().items():
            (root / name / file_name).write_bytes(content)
    assert cabinet.run("rm", "-y", "lm/one").code == 0
    assert sorted(path.name for path in (root / "lm").iterdir()) == ["two"]
    assert cabinet.run("rm", "-y", "lm/two").code == 0

    assert list(root.iterdir()) == []


def test_folder_that_cannot_be_moved_is_told(full_cabinet: Cabinet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that cannot be written keeps its models."""

    def refuse(_self: Path, _target: Path) -> Path:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", refuse)
    ran = full_cabinet.run("rm", "-y", NAME)

    assert (ran.code, ran.err.splitlines()[-2:]) == (
        73,
        [
            f"error: {full_cabinet.hub_cache / FOLDER} cannot be removed: Permission denied.",
            "hint: Make it writable for this user.",
        ],
    )


def prune(cabinet: Cabinet) -> set[tuple[str, str]]:
    """What could go, and of which model."""
    found = json.loads(cabinet.run("prune", "--dry-run", "--json").out)
    assert not any(each["removed"] for each in found)
    return {(each["what"], each["name"]) for each in found}


def interrupt(cabinet: Cabinet, name: str, files: dict[str, bytes]) -> Path:
    """What is left of a pull that somebody ended: whole files, and no branch that leads to them."""
    snapshot = cabinet.add(name, files)
    folder = snapshot.parents[1]
    shutil.rmtree(folder / "refs")
    lock = cabinet.hub_cache / ".locks" / folder.name / "mlxm.lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    return folder


def test_prune_finds_what_no_model_needs(cabinet: Cabinet) -> None:
    """Parts of files, revisions that nothing leads to, contents without a link, pulls that were ended."""
    folder = prepare_leftovers(cabinet)
    cabinet.add(NAME, {"config.json": b"{}"}, commit="2" * 40)
    (folder / "refs" / "main").write_text("1" * 40)
    (folder / "blobs" / ("f" * 64)).write_bytes(b"x" * 3000)
    (cabinet.hub_cache / ".mlxm-trash-1").mkdir()
    (cabinet.hub_cache / ".mlxm-trash-1" / "rest").write_bytes(b"x" * 4000)
    interrupt(cabinet, "acme/ended", text_files())
    interrupt(cabinet, "acme/tried", {"model.safetensors.index.json": INDEX, **text_files()})

    assert prune(cabinet) == {
        ("removed model", ".mlxm-trash-1"),
        ("incomplete model", "acme/ended"),
        ("incomplete model", "acme/tried"),
        ("unfinished file", NAME),
        ("old revision", NAME),
        ("incomplete revision", NAME),
        ("unused content", NAME),
    }


def test_prune_leaves_what_others_fetched_on_purpose(full_cabinet: Cabinet) -> None:
    """A tokenizer alone is no interrupted download, and a format that mlxm does not run is no leftover."""
    assert prune(full_cabinet) == set()


def test_prune_keeps_the_whole_revision_when_the_new_one_is_not_all_here(cabinet: Cabinet) -> None:
    """An update that was interrupted goes, with the branch that leads to it; what worked before works again."""
    cabinet.add(NAME, text_files(), commit="0" * 40, weights_bytes=10_000_000)
    cabinet.add(NAME, {**text_files(), "model.safetensors.index.json": INDEX}, commit="1" * 40)
    assert cabinet.run("ls", "-q", "--filter", "state=incomplete").out == f"{NAME}\n"
    cabinet.run("prune", "-y")

    assert cabinet.run("ls", "-q", "--filter", "state=on disk").out == f"{NAME}\n"
    assert [path.name for path in (cabinet.hub_cache / FOLDER / "snapshots").iterdir()] == ["0" * 40]


def test_prune_leaves_a_damaged_model_to_its_owner(cabinet: Cabinet) -> None:
    """A pull may mend it."""
    snapshot = interrupt(cabinet, "a/b", text_files()) / "snapshots"
    (next(snapshot.iterdir()) / "model.safetensors").write_bytes(b"no weights")

    assert prune(cabinet) == set()


def prepare_leftovers(cabinet: Cabinet) -> Path:
    """A model with an old revision whose contents it shares in part; the model's folder."""
    folder = cabinet.hub_cache / FOLDER
    cabinet.add(NAME, {**text_files(), "old.json": b"[1]" * 500}, commit="0" * 40, weights_bytes=10_000_000)
    cabinet.add(NAME, text_files(), commit="1" * 40, weights_bytes=10_000_000)
    (folder / "blobs" / "abc.1234.incomplete").write_bytes(b"x" * 2000)
    return folder


def test_prune_frees_what_it_says_and_leaves_the_model_whole(cabinet: Cabinet) -> None:
    """What two revisions share stays."""
    folder = prepare_leftovers(cabinet)
    dry = cabinet.run("prune", "--dry-run")
    ran = cabinet.run("prune", "-y")

    assert dry.out == ran.out.rpartition("Freed")[0]
    assert dry.err == "3.5 KB could be freed.\n"
    assert ran.out.endswith("Freed 3.5 KB.\n")
    assert [path.name for path in (folder / "snapshots").iterdir()] == ["1" * 40]
    assert cabinet.run("verify", NAME).code == 0
    assert cabinet.run("prune", "-y").err == "There is nothing to remove.\n"


def test_prune_asks_first(cabinet: Cabinet, monkeypatch: pytest.MonkeyPatch) -> None:
    """And does nothing without a yes."""
    folder = prepare_leftovers(cabinet)
    before = files_below(folder)

    assert cabinet.run("prune").code == 2
    assert answer(cabinet, monkeypatch, "n", "prune").code == 1
    assert files_below(folder) == before
    assert json.loads(cabinet.run("prune", "-y", "--json").out)[0]["removed"]
    assert files_below(folder) != before


def test_prune_leaves_a_download_that_went_on_while_it_asked(cabinet: Cabinet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is still of no use goes."""
    folder = interrupt(cabinet, "acme/ended", text_files())
    interrupt(cabinet, "acme/tried", text_files())
    with ExitStack() as held:
        lock = hold_alone(cabinet.hub_cache / ".locks" / folder.name / "mlxm.lock", lambda _: None)
        monkeypatch.setattr("mlxm.cli.prune.confirm", lambda *_, **__: held.enter_context(lock))
        ran = cabinet.run("prune", "--json")

    assert [each["name"] for each in json.loads(ran.out)] == ["acme/tried"]
    assert cabinet.run("ls", "-q").out == "acme/ended\n"


def test_prune_leaves_alone_what_somebody_writes(cabinet: Cabinet) -> None:
    """A file that is coming in, and a model that is being fetched."""
    folder = prepare_leftovers(cabinet)
    locks = cabinet.hub_cache / ".locks" / FOLDER
    with hold_alone(locks / "mlxm.lock", lambda _: None):
        assert cabinet.run("prune", "--dry-run").err == "There is nothing to remove.\n"
    with hold_alone(locks / "abc.lock", lambda _: None):
        cabinet.run("prune", "-y")

    assert (folder / "blobs" / "abc.1234.incomplete").exists()
    assert not (folder / "snapshots" / ("0" * 40)).exists()


def test_prune_takes_the_whole_of_a_model_that_never_became_one(cabinet: Cabinet) -> None:
    """Nothing of it is of use to anybody."""
    folder = interrupt(cabinet, "a/b", text_files())

    assert cabinet.run("prune", "-y").code == 0
    assert not folder.exists()


def test_prune_keeps_the_only_revision_although_nothing_leads_to_it(cabinet: Cabinet) -> None:
    """A model that was fetched by its commit has no branch."""
    cabinet.add(NAME, text_files(), weights_bytes=10_000_000)
    shutil.rmtree(cabinet.hub_cache / FOLDER / "refs")

    assert cabinet.run("prune", "-y").err == "There is nothing to remove.\n"


def test_prune_without_a_cache_finds_nothing(cabinet: Cabinet) -> None:
    """Who has never fetched a model has no folder for them."""
    assert cabinet.run("prune").code == 0


def test_prune_tells_what_cannot_be_removed(cabinet: Cabinet, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a file that cannot be written."""
    prepare_leftovers(cabinet)

    def refuse(_self: Path, **_: bool) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    assert cabinet.run("prune", "-y").code == 73


def test_prune_names_whole_models_on_a_narrow_terminal(cabinet: Cabinet) -> None:
    """What a file is called matters less."""
    prepare_leftovers(cabinet)
    screen = cabinet.show("prune", "--dry-run", columns=60)

    assert screen.splitlines()[0].split() == ["WHAT", "MODEL", "SIZE"]
    assert f"unfinished file  {NAME}  2.0 KB" in screen
