"""The tokenizer files, read by the library that reads real ones."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from mlxm.tiny.families import FAMILIES
from mlxm.tiny.tokenizer import (
    FIRST_SPECIAL_ID,
    NUM_BYTES,
    VOCAB_SIZE,
    byte_alphabet,
    eos_ids,
    merges,
    token_ids,
    vocabulary,
    write_tokenizer,
)

PROSE = "I would like to know how many people live in the city, and what the weather is like today."
JSON_TEXT = '{"name": "get_weather", "type": "function", "value": [1, 2, 3], "list": {"null": true}}'
HARD_TEXTS = [
    "",
    " ",
    "\n\n\t  \r\n",
    "naïve café — “quoted” … ß Ω ж 中文 日本語 한국어 हिन्दी עברית",
    "👩‍👩‍👧‍👦 👍🏽 🇩🇪 e\u0301 \u200b\ufeff",
    "\x00\x01\x7f\u0080\uffff\U0010ffff",
    PROSE,
    JSON_TEXT,
]


def written(folder: Path, family: str) -> Tokenizer:
    """The tokenizer of a family, written and read back."""
    write_tokenizer(folder, FAMILIES[family], context=512)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A tokenizer that puts nothing before a text."""
    return written(tmp_path_factory.mktemp("generic"), "generic")


@pytest.mark.parametrize("text", HARD_TEXTS)
def test_every_text_comes_back_as_it_was(tokenizer: Tokenizer, text: str) -> None:
    """Scripts, emoji sequences, controls and white space survive encoding and decoding."""
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_random_unicode_comes_back_as_it_was(tokenizer: Tokenizer) -> None:
    """Any mixture of code points survives encoding and decoding."""
    rng = random.Random(7)
    for _ in range(300):
        points = (
            rng.choice((rng.randrange(0x80), rng.randrange(0xD800), rng.randrange(0xE000, 0x110000))) for _ in range(20)
        )
        text = "".join(map(chr, points))
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_a_character_split_over_tokens_is_whole_when_streamed(tokenizer: Tokenizer) -> None:
    """An emoji is four byte tokens; a stream shows nothing until the last of them."""
    ids = tokenizer.encode("👍").ids
    stream = DecodeStream(ids=[], skip_special_tokens=False)
    shown = [stream.step(tokenizer, token_id) for token_id in ids]
    assert list("👍".encode()) == ids
    assert shown == [None, None, None, "👍"]


def test_byte_tokens_have_the_byte_as_id(tokenizer: Tokenizer) -> None:
    """All 256 bytes are tokens, so nothing is ever unknown."""
    assert [tokenizer.token_to_id(letter) for letter in byte_alphabet()] == list(range(NUM_BYTES))


def test_the_vocabulary_is_full_and_has_no_token_twice() -> None:
    """Bytes and merges fill the ids up to the special tokens exactly."""
    assert len(vocabulary()) == len(set(vocabulary())) == FIRST_SPECIAL_ID
    assert len(merges()) == FIRST_SPECIAL_ID - NUM_BYTES


def test_text_costs_far_fewer_tokens_than_bytes(tokenizer: Tokenizer) -> None:
    """Plain prose takes about four characters a token, JSON about three."""
    assert len(PROSE) / len(tokenizer.encode(PROSE).ids) > 4
    assert len(JSON_TEXT) / len(tokenizer.encode(JSON_TEXT).ids) > 2


def test_listed_words_are_one_token_wherever_they_stand(tokenizer: Tokenizer) -> None:
    """A word of the list is one token inside a sentence, and an opener one at its beginning too."""
    assert tokenizer.encode("Hello people What It").tokens == ["Hello", "Ġpeople", "ĠWhat", "ĠIt"]


@pytest.mark.parametrize("family", FAMILIES)
def test_families_share_size_and_text_ids(tmp_path: Path, tokenizer: Tokenizer, family: str) -> None:
    """One set of weights fits every family: same number of tokens, same ids for plain text."""
    other = written(tmp_path, family)
    assert other.get_vocab_size() == VOCAB_SIZE
    assert other.encode(PROSE, add_special_tokens=False).ids == tokenizer.encode(PROSE).ids


@pytest.mark.parametrize("family", FAMILIES)
def test_markers_are_single_tokens(tmp_path: Path, family: str) -> None:
    """Each marker of a family is one token; special ones vanish from decoded text, visible ones stay."""
    reader = written(tmp_path, family)
    for token, token_id in token_ids(FAMILIES[family]).items():
        ids = reader.encode(f"a{token}b", add_special_tokens=False).ids
        assert ids == [ord("a"), token_id, ord("b")]
        assert reader.decode(ids) == (f"a{token}b" if token in FAMILIES[family].visible else "ab")
        assert reader.decode(ids, skip_special_tokens=False) == f"a{token}b"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_beginning_marker_is_added_where_the_family_does_so(tmp_path: Path, family: str) -> None:
    """Families whose real tokenizers put a marker before each text do it here, the others do not."""
    reader, known = written(tmp_path, family), FAMILIES[family]
    expected = [token_ids(known)[known.bos or ""]] if known.adds_bos else []
    assert reader.encode("").ids == expected
    assert reader.encode("a", "b").ids == [*expected, ord("a"), *expected, ord("b")]


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_config_names_every_end(tmp_path: Path, family: str) -> None:
    """generation_config.json lists all the ids that end an answer."""
    write_tokenizer(tmp_path, FAMILIES[family], context=512)
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert generation["eos_token_id"] == eos_ids(FAMILIES[family])
    assert all(token_id >= FIRST_SPECIAL_ID for token_id in generation["eos_token_id"])


def test_llama3_has_two_ends() -> None:
    """A llama3 answer may end with its text or with its turn."""
    ids = token_ids(FAMILIES["llama3"])
    assert eos_ids(FAMILIES["llama3"]) == [ids["<|end_of_text|>"], ids["<|eot_id|>"]]
