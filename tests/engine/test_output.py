import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models

from mlxm.engine.output import Answer, Detokenizer, StopStrings
from mlxm.errors import ModelBroken
from mlxm.tiny.families import FAMILIES
from mlxm.tiny.tokenizer import byte_alphabet, tokenizer_data

BYTE_LEVEL = Tokenizer.from_str(json.dumps(tokenizer_data(FAMILIES["chatml"])))
BYTE_LEVEL.add_tokens([AddedToken("two words", special=False), AddedToken("naïve≤", special=False)])
NUM_BYTE_LEVEL = BYTE_LEVEL.get_vocab_size()


def vocabulary_of(tokens: Iterable[str], decoder: object) -> Tokenizer:
    """A tokenizer that has only to decode."""
    tokenizer = Tokenizer(models.WordLevel({token: place for place, token in enumerate(tokens)}, unk_token="a"))
    tokenizer.decoder = decoder
    tokenizer.add_special_tokens(["</s>"])
    return tokenizer


BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in (0x41, 0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0x98, 0x80, 0xFF)]
PIECES = ["▁", "▁a", "a", "b▁", "▁▁", "\ufffd", "##s", "x</w>", " ", "é", "."]
STRIPPING = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)
DECODERS = {
    "byte fallback, strips a space": STRIPPING,
    "byte fallback": decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
    "metaspace": decoders.Metaspace(),
    "word pieces": decoders.WordPiece(),
    "end of word": decoders.BPEDecoder(),
    "none": None,
}
TOKENIZERS = {name: vocabulary_of([*PIECES, *BYTE_TOKENS], decoder) for name, decoder in DECODERS.items()}


SPECIAL = [token_id for token_id, token in BYTE_LEVEL.get_added_tokens_decoder().items() if token.special]


def streamed(detokenizer: Detokenizer, token_ids: list[int], kept: frozenset[int] = frozenset()) -> str:
    """The text of the tokens, one after the other."""
    text = detokenizer.start(kept)
    return "".join(text.add(token_id) for token_id in token_ids) + text.finish()


@given(st.lists(st.one_of(st.integers(0, 255), st.integers(0, NUM_BYTE_LEVEL + 3))))
def test_byte_level_text_is_the_decoding_of_all_tokens(token_ids: list[int]) -> None:
    """Split, broken and missing characters, special tokens and unknown ids give what decoding at once gives."""
    assert BYTE_LEVEL.decode(token_ids) == streamed(Detokenizer(BYTE_LEVEL), token_ids)


@pytest.mark.parametrize("name", DECODERS)
@given(token_ids=st.lists(st.integers(0, len(PIECES) + len(BYTE_TOKENS) + 2)))
def test_text_of_every_other_vocabulary_is_the_decoding_of_all_tokens(name: str, token_ids: list[int]) -> None:
    """Spaces stripped at the beginning only, and runs of byte tokens, give what decoding at once gives."""
    tokenizer = TOKENIZERS[name]
    assert tokenizer.decode(token_ids) == streamed(Detokenizer(tokenizer), token_ids)


@given(st.lists(st.integers(0, NUM_BYTE_LEVEL - 1)), st.frozensets(st.sampled_from(SPECIAL)))
def test_kept_tokens_stay_in_byte_level_text(token_ids: list[int], kept: frozenset[int]) -> None:
    """The others are left out, as if they had not been there."""
    shown = [token_id for token_id in token_ids if token_id in kept or token_id not in SPECIAL]
    assert BYTE_LEVEL.decode(shown, skip_special_tokens=False) == streamed(Detokenizer(BYTE_LEVEL), token_ids, kept)


@pytest.mark.parametrize("name", DECODERS)
@given(token_ids=st.lists(st.integers(0, len(PIECES) + len(BYTE_TOKENS) + 2)))
def test_kept_tokens_stay_in_every_other_text(name: str, token_ids: list[int]) -> None:
    """At their place, whatever is around them."""
    tokenizer = TOKENIZERS[name]
    kept = frozenset({tokenizer.token_to_id("</s>")})
    assert tokenizer.decode(token_ids, skip_special_tokens=False) == streamed(Detokenizer(tokenizer), token_ids, kept)


def test_added_tokens_stand_for_themselves() -> None:
    """Their spelling is text, not the byte alphabet's, as soon as one character is none of its own."""
    ids = [BYTE_LEVEL.token_to_id(token) for token in ("two words", "naïve≤", "<think>")]
    assert streamed(Detokenizer(BYTE_LEVEL), ids) == BYTE_LEVEL.decode(ids) == "two wordsnaïve≤<think>"


def test_text_comes_as_soon_as_a_character_is_complete() -> None:
    """Nothing waits longer than it must."""
    alphabet = byte_alphabet()
    ids = [BYTE_LEVEL.token_to_id(alphabet[byte]) for byte in "a€b".encode()]
    text = Detokenizer(BYTE_LEVEL).start()
    assert [text.add(token_id) for token_id in ids] == ["a", "", "", "€", "b"]


def test_a_sentencepiece_word_comes_with_its_token() -> None:
    """Only byte tokens wait for the end of their run."""
    tokenizer = TOKENIZERS["byte fallback, strips a space"]
    ids = [tokenizer.token_to_id(token) for token in ("▁a", "▁a", "<0xE2>", "<0x82>", "<0xAC>", "a")]
    text = Detokenizer(tokenizer).start()
    assert [text.add(token_id) for token_id in ids] == ["a", " a", "", "", "", "€a"]


def test_the_cost_of_a_token_does_not_grow_with_the_text() -> None:
    """Only a few tokens are decoded again for each new one."""
    decoded: list[int] = []

    class Counting(Detokenizer):
        def decode(self, token_ids: list[int]) -> str:
            decoded.append(len(token_ids))
            return super().decode(token_ids)

    tokenizer = TOKENIZERS["byte fallback, strips a space"]
    streamed(Counting(tokenizer), [tokenizer.token_to_id("▁a")] * 1000)
    assert max(decoded) <= 2
    assert len(decoded) <= 2 * 1000 + 1


def test_a_token_is_found_by_its_name() -> None:
    """Configurations name their end token by its text."""
    assert Detokenizer(BYTE_LEVEL).id_of("<|im_end|>") == BYTE_LEVEL.token_to_id("<|im_end|>")
    assert Detokenizer(BYTE_LEVEL).id_of("<|nobody|>") is None


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff\xfe", b'{"model": 5}'])
def test_a_tokenizer_that_cannot_be_used_is_named(tmp_path: Path, content: bytes | None) -> None:
    """A missing or damaged tokenizer.json is the model's fault."""
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ModelBroken, match=r"tokenizer\.json"):
        Detokenizer.from_folder(tmp_path)


def test_other_failures_of_reading_a_tokenizer_are_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what the tokenizers library raises is translated."""
    (tmp_path / "tokenizer.json").write_text("{}")

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("mlxm.engine.output.Detokenizer.__init__", fail)
    monkeypatch.setattr("mlxm.engine.output.Tokenizer.from_str", lambda _: None, raising=False)
    with pytest.raises(ZeroDivisionError):
        Detokenizer.from_folder(tmp_path)


def cut(text: str, stops: list[str]) -> tuple[str, bool]:
    """What StopStrings promises, said naively."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


def pushed(stops: StopStrings, pieces: Iterable[str]) -> str:
    """The text that comes out of pieces."""
    return "".join([stops.push(piece) for piece in pieces]) + stops.finish()


LETTERS = st.text("ab<", max_size=30)


@given(st.lists(LETTERS), st.lists(st.text("ab<", min_size=1, max_size=5), max_size=4))
def test_stop_strings_do_not_depend_on_how_the_text_is_split(pieces: list[str], wanted: list[str]) -> None:
    """However the text is cut, what comes out is the text before the match that is complete first."""
    stops = StopStrings(wanted)
    assert cut("".join(pieces), wanted) == (pushed(stops, pieces), stops.is_found)


@given(LETTERS, st.lists(st.text("ab<", min_size=1, max_size=5), min_size=1, max_size=4))
def test_no_more_is_held_back_than_could_become_a_stop_string(text: str, wanted: list[str]) -> None:
    """What is held back is exactly the longest end that begins a stop string."""
    expected = cut(text, wanted)
    if expected[1]:
        return
    stops = StopStrings(wanted)
    beginnings = [text[place:] for place in range(len(text)) if any(stop.startswith(text[place:]) for stop in wanted)]
    held = max(beginnings, key=len, default="")
    assert text[: len(text) - len(held)] == stops.push(text)
    assert held == stops.finish()


def test_nothing_comes_after_a_stop_string() -> None:
    """Text after the match is lost, as the answer has ended."""
    stops = StopStrings(["STOP"])
    assert stops.push("before STOP after") == "before "
    assert stops.push("more") == ""
    assert stops.finish() == ""


def answer(*, stops: tuple[str, ...] = (), max_tokens: int = 100) -> Answer:
    """An answer of the byte-level vocabulary."""
    return Answer(
        Detokenizer(BYTE_LEVEL), stop_ids=(BYTE_LEVEL.token_to_id("<|im_end|>"),), stops=stops, max_tokens=max_tokens
    )


def ids_of(text: str) -> list[int]:
    """The tokens of a text."""
    return BYTE_LEVEL.encode(text, add_special_tokens=False).ids


def test_an_answer_ends_at_its_limit() -> None:
    """The last token's text is there, and an unfinished character shows as one."""
    half = answer(max_tokens=2)
    first, second = (half.add(token_id) for token_id in [ids_of("a")[0], ids_of("é")[0]])
    assert (first.text, first.finish_reason) == ("a", None)
    assert (second.text, second.finish_reason) == ("\ufffd", "length")
    assert half.num_tokens == 2


def test_a_stop_token_ends_an_answer_and_releases_what_was_held() -> None:
    """It counts as a token, and has no text."""
    held = answer(stops=("abc",))
    assert held.add(ids_of("a")[0]).text == ""
    last = held.add(BYTE_LEVEL.token_to_id("<|im_end|>"))
    assert (last.text, last.finish_reason) == ("a", "stop")
    assert held.num_tokens == 2


def test_a_stop_string_ends_an_answer() -> None:
    """The token that completes it ends the answer."""
    stopped = answer(stops=("ab",))
    pieces = [stopped.add(token_id) for token_id in (ids_of("x")[0], ids_of("a")[0], ids_of("b")[0])]
    assert [piece.text for piece in pieces] == ["x", "", ""]
    assert [piece.finish_reason for piece in pieces] == [None, None, "stop"]


def test_a_stop_string_that_ends_at_the_limit_is_a_stop() -> None:
    """Also when only the end of the answer made its last character certain."""
    stopped = answer(stops=("\ufffd",), max_tokens=1)
    piece = stopped.add(ids_of("é")[0])
    assert (piece.text, piece.finish_reason) == ("", "stop")


# ── raw bytes ────────────────────────────────────────────────────────────────────────────────────


def test_a_byte_level_token_has_its_bytes() -> None:
    """Parts of characters as well, and added tokens as they are written."""
    detokenizer = Detokenizer(BYTE_LEVEL)
    assert [detokenizer.raw(byte) for byte in range(256)] == [bytes([byte]) for byte in range(256)]
    ids = BYTE_LEVEL.encode("Grüße, 世界 😀", add_special_tokens=False).ids
    assert b"".join(map(detokenizer.raw, ids)).decode() == "Grüße, 世界 😀"
    assert detokenizer.raw(NUM_BYTE_LEVEL - 1) == "naïve≤".encode()
    assert detokenizer.raw(NUM_BYTE_LEVEL - 2) == b"two words"


def test_a_special_token_has_the_bytes_of_its_name() -> None:
    """It has no text, but somebody may want to know which it was."""
    detokenizer = Detokenizer(BYTE_LEVEL)
    special = detokenizer.id_of("<|im_end|>")
    assert special is not None
    assert detokenizer.raw(special) == b"<|im_end|>"


def test_a_token_beyond_the_vocabulary_has_no_bytes() -> None:
    """Some models have more places than tokens."""
    assert Detokenizer(BYTE_LEVEL).raw(NUM_BYTE_LEVEL + 5) == b""


@pytest.mark.parametrize("decoder", ["byte fallback, strips a space", "byte fallback", "metaspace"])
def test_a_sentencepiece_token_has_its_bytes(decoder: str) -> None:
    """A mark is a space, and a byte token is its byte; what only looks like one is text."""
    tokens = ["<0xE2>", "<0x0A>", "▁a", "▁▁", "é", "<0xZZ>", "<0x1>"]
    detokenizer = Detokenizer(vocabulary_of([*tokens, "a"], DECODERS[decoder]))
    expected = [b"\xe2", b"\n", b" a", b"  ", "é".encode(), b"<0xZZ>", b"<0x1>"]
    assert [detokenizer.raw(place) for place in range(len(tokens))] == expected
    end = detokenizer.id_of("</s>")
    assert end is not None
    assert detokenizer.raw(end) == b"</s>"


def test_a_byte_level_decoder_among_others_is_seen() -> None:
    """Some models have steps around it."""
    tokenizer = Tokenizer.from_str(json.dumps(tokenizer_data(FAMILIES["chatml"])))
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()])
    assert Detokenizer(tokenizer).raw(32) == b" "


def test_what_was_set_for_training_is_not_handed_on() -> None:
    """Only the vocabulary and how it is used."""
    tokenizer = Tokenizer.from_str(json.dumps(tokenizer_data(FAMILIES["chatml"])))
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding()
    handed_on = json.loads(Detokenizer(tokenizer).to_json())
    assert (handed_on["truncation"], handed_on["padding"]) == (None, None)
    assert tokenizer.truncation is not None
