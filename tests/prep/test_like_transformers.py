"""What transformers makes of a folder is what models were trained on: the same text and ids must come out."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import pytest
from transformers import AutoTokenizer

from mlxm.prep.shelf import Prompter
from mlxm.tiny.families import FAMILIES
from mlxm.types import Message

MakeModel = Callable[..., Path]
Say = Callable[..., tuple[Message, ...]]

PUBLISHED = Path(os.environ.get("MLXM_CHAT_TEMPLATES", "absent"))
TEMPLATES = sorted(PUBLISHED.glob("*.jinja"))


def plain(messages: tuple[Message, ...]) -> list[dict[str, str]]:
    """The conversation as transformers takes it."""
    return [{"role": message.role, "content": "".join(part.text for part in message.content)} for message in messages]


def load(folder: Path) -> Any:
    """The folder's tokenizer in transformers."""
    return AutoTokenizer.from_pretrained(str(folder))


def expected_ids(folder: Path, messages: tuple[Message, ...]) -> tuple[int, ...]:
    """The prompt's ids by transformers."""
    return tuple(
        load(folder).apply_chat_template(plain(messages), tokenize=True, add_generation_prompt=True, return_dict=False)
    )


def ids(folder: Path, messages: tuple[Message, ...]) -> tuple[int, ...]:
    """The prompt's ids by mlxm."""
    prompter = Prompter(folder)
    return prompter.encode(prompter.render(messages).text)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_has_the_same_ids(make_model: MakeModel, conversation: tuple[Message, ...], family: str) -> None:
    """The tiny families lay out prompts as the real ones do."""
    folder = make_model(family=family)
    found = ids(folder, conversation)
    assert expected_ids(folder, conversation) == found
    assert len(found) > 20


def test_a_template_that_prints_bos_has_it_once(make_model: MakeModel, say: Say) -> None:
    """The tokenizer would put it there a second time."""
    folder = make_model(family="llama3")
    found = ids(folder, say(("user", "hello")))
    bos = load(folder).bos_token_id
    assert bos == found[0]
    assert found.count(bos) == 1


@pytest.mark.skipif(not TEMPLATES, reason="MLXM_CHAT_TEMPLATES names no folder of published templates")
@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_published_templates_print_the_same(
    make_model: MakeModel, conversation: tuple[Message, ...], path: Path
) -> None:
    """Whatever a real template does with a plain conversation, it does here; what it refuses is put in another form."""
    folder = make_model(family="llama3", chat_template="absent")
    (folder / "chat_template.jinja").write_bytes(path.read_bytes())
    tokenizer = load(folder)
    try:
        expected = tokenizer.apply_chat_template(plain(conversation), tokenize=False, add_generation_prompt=True)
    except (jinja2.TemplateError, TypeError):  # no system role; no tools to walk over
        text = Prompter(folder).render(conversation).text
        assert all(word in text for word in ("Answer briefly.", "4, as ever.", "“warum”? 😀"))
    else:
        assert expected == Prompter(folder).render(conversation).text
        assert expected_ids(folder, conversation) == ids(folder, conversation)


@pytest.mark.parametrize("place", ["string", "list", "jinja", "jinja beats string", "extra templates beat string"])
def test_the_template_is_found_in_the_same_place(make_model: MakeModel, say: Say, place: str) -> None:
    """A folder may hold several; one of them counts."""
    folder = make_model("config")
    if place == "list":
        named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "listed"}]
        folder = make_model(chat_template=named)
    if place.startswith("jinja"):
        (folder / "chat_template.jinja").write_text("file")
    if place.startswith("extra"):
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / "default.jinja").write_text("extra")
    expected = load(folder).apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert expected == Prompter(folder).render(say(("user", "x"))).text


@pytest.mark.parametrize(
    "settings",
    [
        {"added_tokens_decoder": {"1792": {"content": "<new>", "lstrip": True, "special": True}}},
        {"added_tokens_decoder": {"1792": {"content": "<new>", "special": False}}, "mask_token": "<new>"},
        {"added_tokens_decoder": {}, "bos_token": {"__type": "AddedToken", "content": "<new>"}},
        {"bos_token": "<new>"},
        {"bos_token": "<new>", "image_token": "<image>"},
        {"extra_special_tokens": ["<new>", "<image>"]},
        {"additional_special_tokens": ["<new>"]},
        {"extra_special_tokens": {"image_token": "<new>"}},
        {"added_tokens_decoder": {"1760": {"content": "<|endoftext|>", "rstrip": True, "special": True}}},
    ],
)
def test_special_tokens_have_the_same_ids_and_names(
    make_model: MakeModel, say: Say, settings: dict[str, object]
) -> None:
    """Configurations name them in many forms, and some are missing from tokenizer.json."""
    template = (
        "{{ bos_token }}|{{ eos_token }}|{{ mask_token }}|{{ image_token }}|{{ messages[0].content }} <new> <image> "
    )
    folder = make_model(template, **settings)
    messages = say(("user", "one <new> two <|endoftext|> three"))
    assert expected_ids(folder, messages) == ids(folder, messages)


def test_older_folders_name_special_tokens_in_a_file_of_their_own(make_model: MakeModel, say: Say) -> None:
    """special_tokens_map.json counts where the configuration does not describe its tokens."""
    folder = make_model("{{ bos_token }}{{ eos_token }}{{ messages[0].content }}", eos_token="<other>")
    tokens = {"bos_token": {"content": "<first>", "lstrip": True}, "eos_token": "<|im_end|>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(tokens))
    messages = say(("user", "hello <first> you"))
    assert expected_ids(folder, messages) == ids(folder, messages)
    assert Prompter(folder).render(messages).text.startswith("<first><|im_end|>")


def test_prompts_are_neither_cut_nor_filled(make_model: MakeModel, say: Say) -> None:
    """Some tokenizers still carry the limits of their training."""
    folder = make_model()
    path = folder / "tokenizer.json"
    content = json.loads(path.read_bytes())
    content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {
        "strategy": {"Fixed": 512},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<|endoftext|>",
    }
    path.write_text(json.dumps(content))
    messages = say(("user", "one two three four five six"))
    assert expected_ids(folder, messages) == ids(folder, messages)
    assert 4 < len(ids(folder, messages)) < 512
