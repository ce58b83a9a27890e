from __future__ import annotations

import pytest

from mlxm.checkpoint.names import nearest, parse_name
from mlxm.errors import InvalidRequest

KNOWN = (
    "mlx-community/Qwen3-4B-4bit",
    "mlx-community/Qwen3-0.6B-4bit",
    "mlx-community/gemma-3-4b-it-4bit",
    "mlxm/tiny",
)


@pytest.mark.parametrize(
    ("text", "owner", "repo", "folder"),
    [
        ("mlx-community/Qwen3-4B-4bit", "mlx-community", "Qwen3-4B-4bit", "models--mlx-community--Qwen3-4B-4bit"),
        ("gpt2", None, "gpt2", "models--gpt2"),
        ("a/b_c.d-e", "a", "b_c.d-e", "models--a--b_c.d-e"),
        ("x" * 96, None, "x" * 96, f"models--{'x' * 96}"),
    ],
)
def test_names_have_an_owner_a_repo_and_a_folder(text: str, owner: str | None, repo: str, folder: str) -> None:
    """All that the Hub allows."""
    name = parse_name(text)
    assert (name.text, name.owner, name.repo, name.cache_folder) == (text, owner, repo, folder)


@pytest.mark.parametrize(
    "text",
    [
        *("", "/", "a/", "/a", "a/b/c", ".", "..", "../a", "a/..", "a..b", "a--b", "-a", ".a", "a.", "a-", "a/b."),
        *(
            "a b",
            "a\n",
            "a\0b",
            "a\\b",
            "C:a",
            "~",
            "~/a",
            "é",
            "\uff41",
            "a/\u202e",
            "%2e%2e",
            "x" * 97,
            "a/" + "x" * 97,
        ),
    ],
)
def test_everything_else_is_refused_by_name(text: str) -> None:
    """The message can be printed whatever was given, and is short."""
    with pytest.raises(InvalidRequest) as caught:
        parse_name(text)
    assert caught.value.param == "model"
    assert caught.value.message.isprintable()
    assert caught.value.message.isascii()
    assert len(caught.value.message) < 200


def test_a_very_long_name_is_not_repeated_in_full() -> None:
    """Nobody reads a megabyte of message."""
    with pytest.raises(InvalidRequest) as caught:
        parse_name("x" * 1_000_000)
    assert len(caught.value.message) < 200


@pytest.mark.parametrize(
    ("wanted", "first"),
    [
        ("mlx-community/Qwen3-4B-4bi", "mlx-community/Qwen3-4B-4bit"),
        ("qwen3-4b", "mlx-community/Qwen3-4B-4bit"),
        ("mlx-comunity/gemma-3-4b-it-4bit", "mlx-community/gemma-3-4b-it-4bit"),
        ("gemma3-4b-it", "mlx-community/gemma-3-4b-it-4bit"),
        ("mlxm/tiney", "mlxm/tiny"),
    ],
)
def test_the_likeliest_name_comes_first(wanted: str, first: str) -> None:
    """Capitals, a forgotten owner and a slip of the fingers are all understood."""
    assert nearest(wanted, KNOWN)[0] == first


def test_nothing_is_near_to_nonsense() -> None:
    """No guess is better than a wild one, and there are never more than asked for."""
    assert nearest("zzzzzzzzzz", KNOWN) == ()
    assert nearest("", KNOWN) == ()
    assert len(nearest("qwen3", KNOWN, limit=1)) == 1
