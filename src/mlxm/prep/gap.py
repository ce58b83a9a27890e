"""Prompts with a gap to be filled in: the text before it, the text after it, and the tokens that tell them apart.

Models that were taught this have three such tokens, under one of a few sets of names.
"""

from __future__ import annotations

from typing import Final

from mlxm.errors import UnsupportedParameter
from mlxm.prep.tokenizer import Encoder

# Before the text that comes first, before the text that comes after the gap, and before what fills it.
_MARKS: Final = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),
)


def fill_in(encoder: Encoder, before: str, after: str) -> tuple[int, ...]:
    """The ids of a prompt whose answer goes between two texts; UnsupportedParameter when the model cannot do that."""
    for names in _MARKS:
        first, second, third = map(encoder.find, names)
        if first is not None and second is not None and third is not None:
            beginning = encoder.encode_whole("")
            return (*beginning, first, *encoder.encode(before), second, *encoder.encode(after), third)
    raise UnsupportedParameter(
        "This model cannot fill in the middle: it has no tokens for that.",
        hint="Leave suffix out, or use a model that was made for code.",
        param="suffix",
    )
