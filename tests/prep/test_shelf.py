from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mlxm.errors import ModelBroken
from mlxm.prep.options import RenderOptions
from mlxm.prep.shelf import Prompter, Shelf
from mlxm.types import Message, Tool

MakeModel = Callable[..., Path]
Say = Callable[..., tuple[Message, ...]]


def test_a_model_is_read_once(make_model: MakeModel) -> None:
    """Reading a tokenizer takes a thousand times as long as using it."""
    shelf, folder = Shelf(), make_model()
    assert shelf.take(folder) is shelf.take(folder)


def test_a_changed_file_is_read_again(make_model: MakeModel) -> None:
    """A new download must not be answered with the old template."""
    shelf, folder = Shelf(), make_model()
    first = shelf.take(folder)
    os.utime(folder / "tokenizer_config.json", (1, 1))
    assert first is not shelf.take(folder)


def test_the_least_recently_used_model_leaves(make_model: MakeModel) -> None:
    """Two places, three models: the one that was not asked for again goes."""
    shelf = Shelf(places=2)
    one, two, three = make_model(), make_model(), make_model()
    first, second = shelf.take(one), shelf.take(two)
    assert first is shelf.take(one)
    shelf.take(three)
    assert first is shelf.take(one)
    assert second is not shelf.take(two)


def test_a_changed_model_takes_no_second_place(make_model: MakeModel) -> None:
    """It replaces itself."""
    shelf = Shelf(places=2)
    one, two = make_model(), make_model()
    shelf.take(one)
    second = shelf.take(two)
    os.utime(one / "tokenizer.json", (1, 1))
    shelf.take(one)
    assert second is shelf.take(two)


def test_a_folder_that_is_gone_is_a_broken_model(tmp_path: Path) -> None:
    """Models can be removed while they are served."""
    with pytest.raises(ModelBroken, match="gone or empty"):
        Shelf().take(tmp_path / "gone")


def test_tools_are_told_by_the_template_that_is_for_them(make_model: MakeModel, say: Say) -> None:
    """Without tools the other one is as good as ever."""
    tools = "{{ messages[0].content }}{% for tool in tools %} {{ tool.function.name }}{% endfor %}"
    named = [{"name": "default", "template": "{{ messages[0].content }}"}, {"name": "tool_use", "template": tools}]
    prompter = Prompter(make_model(chat_template=named))
    options = RenderOptions(tools=(Tool(name="roll"),))
    assert prompter.render(say(("user", "Hi."))).text == "Hi."
    assert prompter.render(say(("user", "Hi.")), options).text == "Hi. roll"
    assert Prompter(make_model(tools)).render(say(("user", "Hi.")), options).text == "Hi. roll"
