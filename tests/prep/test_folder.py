from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mlxm.errors import InvalidRequest, ModelBroken
from mlxm.prep.files import read_object, read_text, revision
from mlxm.prep.folder import find_special_tokens, find_template, find_template_texts, find_tool_template

MakeModel = Callable[..., Path]


def test_a_processor_file_holds_the_template_when_nothing_else_does(make_model: MakeModel) -> None:
    """Vision models of some years put it into chat_template.json alone."""
    folder = make_model(chat_template="absent")
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "from the processor"}))
    assert find_template(folder) == "from the processor"


def test_a_model_without_a_template_says_so(make_model: MakeModel) -> None:
    """Base models complete text and cannot take a conversation."""
    with pytest.raises(InvalidRequest, match="has no chat template"):
        find_template(make_model(chat_template="absent"))


def test_a_model_with_other_templates_only_names_them(make_model: MakeModel) -> None:
    """Which one to take is not guessed."""
    folder = make_model(chat_template=[{"name": "tool_use", "template": "x"}, {"name": "rag", "template": "y"}])
    with pytest.raises(InvalidRequest, match="only: rag, tool_use"):
        find_template(folder)


def test_named_templates_may_be_an_object(make_model: MakeModel) -> None:
    """Some tools write them so."""
    assert find_template(make_model(chat_template={"default": "this one"})) == "this one"


@pytest.mark.parametrize("form", [7, [7], [{"name": "default"}], {"default": 7}])
def test_a_template_of_an_unknown_form_is_a_broken_model(make_model: MakeModel, form: object) -> None:
    """Nothing is made of it."""
    with pytest.raises((ModelBroken, InvalidRequest), match=r"chat.template"):
        find_template(make_model(chat_template=form))


@pytest.mark.parametrize(
    "settings",
    [
        {"bos_token": 7},
        {"bos_token": {"text": "<s>"}},
        {"extra_special_tokens": 7},
        {"extra_special_tokens": [7]},
        {"added_tokens_decoder": []},
        {"added_tokens_decoder": {"one": {"content": "<s>"}}},
        {"added_tokens_decoder": {"1": {"content": 7}}},
    ],
)
def test_special_tokens_of_an_unknown_form_are_a_broken_model(
    make_model: MakeModel, settings: dict[str, object]
) -> None:
    """The message names the setting."""
    with pytest.raises(ModelBroken, match=next(iter(settings))):
        find_special_tokens(make_model(**settings))


def test_switches_are_no_tokens(make_model: MakeModel) -> None:
    """add_bos_token ends like a token's name and is true or false."""
    assert "add_bos_token" not in find_special_tokens(make_model(add_bos_token=True)).texts()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\xfe{}", "not valid UTF-8"),
        (b"{", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "not a JSON object"),
    ],
)
def test_a_damaged_configuration_is_a_broken_model(tmp_path: Path, content: bytes, words: str) -> None:
    """The file is named without its place."""
    path = tmp_path / "tokenizer_config.json"
    path.write_bytes(content)
    with pytest.raises(ModelBroken, match=words) as caught:
        read_object(path)
    assert str(tmp_path) not in caught.value.message
    assert "tokenizer_config.json" in caught.value.message


def test_a_pipe_in_a_files_place_is_not_waited_for(tmp_path: Path) -> None:
    """Reading it would never end."""
    os.mkfifo(tmp_path / "chat_template.jinja")
    with pytest.raises(ModelBroken, match="is not a file"):
        read_text(tmp_path / "chat_template.jinja")


def test_a_file_of_absurd_size_is_not_read(tmp_path: Path) -> None:
    """It would fill the memory before anything could look at it."""
    path = tmp_path / "chat_template.jinja"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ModelBroken, match="larger than 64 MiB"):
        read_text(path)


def test_a_file_that_the_system_refuses_is_a_broken_model(tmp_path: Path) -> None:
    """A link that leads to itself, for one."""
    path = tmp_path / "chat_template.jinja"
    path.symlink_to(path)
    with pytest.raises(ModelBroken, match="cannot be read"):
        read_text(path)


def test_the_revision_changes_with_every_file_that_counts(make_model: MakeModel) -> None:
    """A prompt must never be made with what a folder held before."""
    folder = make_model()
    seen = {revision(folder)}
    for name in ("chat_template.jinja", "special_tokens_map.json"):
        (folder / name).write_text("{}")
        seen.add(revision(folder))
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("x")
    seen.add(revision(folder))
    os.utime(folder / "tokenizer.json", (1, 1))
    assert len(seen | {revision(folder)}) == 5


def test_some_models_have_a_template_of_their_own_for_tools(make_model: MakeModel) -> None:
    """What it gives away of the model's way of writing counts as well."""
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "with tools"}]
    folder = make_model(chat_template=named)
    assert find_tool_template(folder) == "with tools"
    assert find_template_texts(folder) == "plain\nwith tools"
    folder = make_model("alone")
    assert find_tool_template(folder) is None
    assert find_template_texts(folder) == "alone"
    assert find_template_texts(make_model(chat_template="absent")) is None
