from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mlxm.errors import InvalidRequest, UnsupportedParameter
from mlxm.prep.shelf import Prompter

MakeModel = Callable[..., Path]
BOS = "<|begin_of_text|>"


def with_marks(folder: Path, *marks: str) -> Path:
    """Give a tokenizer three more tokens."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_bytes())
    first = 1 + max(token["id"] for token in content["added_tokens"])
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content["added_tokens"] += [{**plain, "id": first + n, "content": mark} for n, mark in enumerate(marks)]
    path.write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    "marks",
    [("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"), ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>")],
)
def test_a_gap_is_marked(make_model: MakeModel, marks: tuple[str, str, str]) -> None:
    """What comes before, what comes after, and where the answer begins."""
    prompter = Prompter(with_marks(make_model(family="llama3"), *marks))
    ids = prompter.encode_plain("one", suffix="two", is_bare=False)
    assert prompter.decode(ids) == f"{BOS}{marks[0]}one{marks[1]}two{marks[2]}"


def test_a_model_without_marks_refuses_a_suffix(make_model: MakeModel) -> None:
    """It would take the suffix for what comes before."""
    with pytest.raises(UnsupportedParameter) as caught:
        Prompter(make_model()).encode_plain("one", suffix="two", is_bare=False)
    assert caught.value.param == "suffix"


def test_plain_text_gets_what_the_tokenizer_puts_around_it(make_model: MakeModel) -> None:
    """Unless it is wanted bare; and the way back tells all of it."""
    prompter = Prompter(make_model(family="llama3"))
    whole = prompter.encode_plain("hello you", suffix=None, is_bare=False)
    bare = prompter.encode_plain("hello you", suffix=None, is_bare=True)
    assert whole[1:] == bare
    assert (prompter.decode(whole), prompter.decode(bare)) == (f"{BOS}hello you", "hello you")


def test_what_is_no_token_is_refused(make_model: MakeModel) -> None:
    """The library would leave it out in silence."""
    with pytest.raises(InvalidRequest, match="no token 2147483647") as caught:
        Prompter(make_model()).decode((1, 2**31 - 1))
    assert caught.value.param == "tokens"


def test_a_model_without_a_template_goes_on_with_text(make_model: MakeModel) -> None:
    """It only takes no conversations."""
    prompter = Prompter(make_model(chat_template="absent"))
    assert prompter.encode_plain("hello", suffix=None, is_bare=True)
    with pytest.raises(InvalidRequest, match="no chat template"):
        prompter.render(())
