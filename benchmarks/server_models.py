"""The model that all servers of `benchmarks.server` serve: random weights, and a tokenizer that all of them load.

Two things matter here that do not for the engine alone. Every id has a text of its own, or a server would send nothing
for most tokens. And what ends an answer, or is no whole character, is as good as never chosen: all answers have the
length that was asked for, whichever server gives them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file, save_file

from mlxm.testing import build_models
from mlxm.tiny.tokenizer import FIRST_SPECIAL_ID, NUM_BYTES, NUM_SPECIAL, VOCAB_SIZE
from mlxm.tiny.words import WORDS

VOCABULARY = 32000
_CONTEXT = 8192
_SIZES: Mapping[str, Mapping[str, int]] = {
    "30M": {
        "hidden_size": 384,
        "num_hidden_layers": 12,
        "intermediate_size": 1024,
        "num_attention_heads": 6,
    },
    "150M": {
        "hidden_size": 640,
        "num_hidden_layers": 24,
        "intermediate_size": 2048,
        "num_attention_heads": 10,
    },
}
_COMMON = {
    "model_type": "llama",
    "num_key_value_heads": 2,
    "head_dim": 64,
    "rms_norm_eps": 1e-6,
    "vocab_size": VOCABULARY,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "max_position_embeddings": _CONTEXT,
}
_MUTE = 1e-2
_FIRST_PRINTABLE, _FIRST_NOT_ASCII = 0x20, 0x7F


def build(size: str, folder: Path) -> Path:
    """A model folder of that size."""
    path = build_models({size: {**_COMMON, **_SIZES[size]}}, folder)[size]
    _name_all_tokens(path / "tokenizer.json")
    _mute(path / "model.safetensors")
    return path


def words(num_words: int, source: random.Random) -> str:
    """A text of as many tokens."""
    return "".join(f" {word}" for word in source.choices(WORDS, k=num_words))


def _name_all_tokens(path: Path) -> None:
    """Markers stand among the words as well: they would be given other ids, beyond the last word, if they did not."""
    tokenizer: dict[str, Any] = json.loads(path.read_text("utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary |= {f"Ġw{token_id}": token_id for token_id in range(VOCAB_SIZE, VOCABULARY)}
    vocabulary |= {added["content"]: added["id"] for added in tokenizer["added_tokens"]}
    path.write_text(json.dumps(tokenizer), "utf-8")


def _mute(path: Path) -> None:
    """Embeddings that are almost nothing: their logits are never the largest."""
    weights = load_file(path)
    rows = [*range(_FIRST_PRINTABLE), *range(_FIRST_NOT_ASCII, NUM_BYTES)]
    rows += range(FIRST_SPECIAL_ID, FIRST_SPECIAL_ID + NUM_SPECIAL)
    weights["model.embed_tokens.weight"][rows] *= _MUTE
    save_file(weights, path, {"format": "mlx"})
