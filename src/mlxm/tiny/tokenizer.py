"""A byte-level BPE tokenizer written as data: 256 bytes, merges from a word list, and a family's special tokens.

Plain text has the same ids in every family, so that one set of weights fits them all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mlxm.tiny.families import Family
from mlxm.tiny.words import OPENERS, PIECES, WORDS

VOCAB_SIZE: Final = 1792
NUM_BYTES: Final = 256
NUM_SPECIAL: Final = 32
FIRST_SPECIAL_ID: Final = VOCAB_SIZE - NUM_SPECIAL
"""Ids below are bytes and merges; here the family's special tokens begin, followed by reserved ones."""

_PRINTABLE = frozenset((*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)))
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def byte_alphabet() -> list[str]:
    """The character that stands for each byte in the vocabulary's spelling: itself where it can be printed."""
    alphabet, stand_in = [], 0x100
    for byte in range(NUM_BYTES):
        if byte in _PRINTABLE:
            alphabet.append(chr(byte))
        else:
            alphabet.append(chr(stand_in))
            stand_in += 1
    return alphabet


def merges() -> list[tuple[str, str]]:
    """The pairs that are merged, by rank.

    A text is built from left to right, one character at a time. Words outrank openers and openers outrank pieces, so
    that nothing shorter can break into a text whose own chain still applies.
    """
    pairs: dict[str, tuple[str, str]] = {}
    for spelled in spell(*(f" {word}" for word in WORDS), *OPENERS):
        _chain(spelled, pairs)
    for spelled in spell(*(f" {opener}" for opener in OPENERS)):
        pairs.setdefault(spelled, (spelled[0], spelled[1:]))
    for spelled in spell(*PIECES):
        _chain(spelled, pairs)
    return list(pairs.values())[: FIRST_SPECIAL_ID - NUM_BYTES]


def spell(*texts: str) -> list[str]:
    """The texts as a byte-level vocabulary spells them, one character for each byte."""
    alphabet = byte_alphabet()
    return ["".join(alphabet[byte] for byte in text.encode()) for text in texts]


def vocabulary() -> list[str]:
    """The spelling of every token below the special ones, by id."""
    return [*byte_alphabet(), *("".join(pair) for pair in merges())]


def token_ids(family: Family) -> dict[str, int]:
    """The ids of a family's special and visible markers."""
    return {token: FIRST_SPECIAL_ID + place for place, token in enumerate((*family.special, *family.visible))}


def eos_ids(family: Family) -> list[int]:
    """The ids that end a family's answer."""
    ids = token_ids(family)
    return [ids[token] for token in family.eos]


def write_tokenizer(folder: Path, family: Family, *, context: int) -> None:
    """Write tokenizer.json, tokenizer_config.json and generation_config.json into `folder`."""
    ids = token_ids(family)
    _write_json(folder / "tokenizer.json", tokenizer_data(family))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": family.bos,
            "eos_token": family.eos[0],
            "pad_token": family.pad,
            "model_max_length": context,
            "clean_up_tokenization_spaces": False,
            "chat_template": family.chat_template,
        },
    )
    generation = {"eos_token_id": eos_ids(family), "pad_token_id": ids[family.pad]}
    if family.bos is not None:
        generation["bos_token_id"] = ids[family.bos]
    _write_json(folder / "generation_config.json", generation)


def tokenizer_data(family: Family) -> dict[str, object]:
    """What tokenizer.json holds for a family."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(_added_tokens(family)),
        "normalizer": None,
        "pre_tokenizer": _BYTE_LEVEL,
        "post_processor": _post_processor(family),
        "decoder": _BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {spelled: token_id for token_id, spelled in enumerate(vocabulary())},
            "merges": [list(pair) for pair in merges()],
        },
    }


def _chain(spelled: str, pairs: dict[str, tuple[str, str]]) -> None:
    for end in range(1, len(spelled)):
        pairs.setdefault(spelled[: end + 1], (spelled[:end], spelled[end]))


def _added_tokens(family: Family) -> Iterator[dict[str, object]]:
    named = (*family.special, *family.visible)
    reserved = (f"<|reserved_{place}|>" for place in range(len(named), NUM_SPECIAL))
    for place, token in enumerate((*named, *reserved)):
        yield {
            "id": FIRST_SPECIAL_ID + place,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": token not in family.visible,
        }


def _post_processor(family: Family) -> dict[str, object]:
    """Families whose tokenizer begins every text with a marker do it here, as the real ones do."""
    if family.bos is None or not family.adds_bos:
        return _BYTE_LEVEL
    marker = {"SpecialToken": {"id": family.bos, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": place}} for place, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [marker, first],
        "pair": [marker, first, marker, second],
        "special_tokens": {
            family.bos: {"id": family.bos, "ids": [token_ids(family)[family.bos]], "tokens": [family.bos]}
        },
    }


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
