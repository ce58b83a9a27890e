"""The files of the built-in model: a small llama, its tokenizer, and a card that says what it is."""

from __future__ import annotations

import json
from math import sqrt
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mlxm.tiny.families import FAMILIES
from mlxm.tiny.tokenizer import VOCAB_SIZE, spell, token_ids, vocabulary, write_tokenizer
from mlxm.tiny.weights import normal, write_safetensors
from mlxm.tiny.words import OPENERS, WORDS

Weights = dict[str, NDArray[np.float32]]

_SEED: Final = 0
_CONTEXT: Final = 8192
_FAMILY: Final = FAMILIES["llama3"]
_HIDDEN: Final = 128
_INNER: Final = 384
_LAYERS: Final = 4
_HEADS: Final = 4
_KV_HEADS: Final = 2
_HEAD_SIZE: Final = 32

_EMBEDDING_GAIN: Final = 0.3
_GAINS: Final = {"self_attn.q_proj": 2.0, "self_attn.k_proj": 2.0, "mlp.down_proj": 3.0}
"""Layers speak louder than embeddings and attention picks sharply, or the model would repeat its last token."""
_LOGIT_GAIN: Final = 14.0
"""Spreads the logits so far that a few tokens stand out, whether they are chosen greedily or sampled."""
_FRAGMENT_SCALE: Final = 0.6
_MUTE_SCALE: Final = 0.05
"""Markers, and bytes that are no text by themselves, are as good as never chosen: the model talks up to its limit."""

_README: Final = """\
# mlxm/tiny

A llama with random weights, made by mlxm on this machine (revision {revision}).
It speaks gibberish: use it to try commands and clients without a download, never for its answers.
It does not stop by itself, so give it a limit on new tokens.
"""


def write_builtin(folder: Path, *, revision: str) -> None:
    """Write every file of the built-in model into an empty folder."""
    (folder / "config.json").write_text(json.dumps(_config(), indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_README.format(revision=revision), encoding="utf-8")
    write_tokenizer(folder, _FAMILY, context=_CONTEXT)
    write_safetensors(folder / "model.safetensors", _weights())


def _config() -> dict[str, object]:
    """The model's shape; only generation_config.json names every token that ends an answer, as with real models."""
    ids = token_ids(_FAMILY)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": _HIDDEN,
        "intermediate_size": _INNER,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _KV_HEADS,
        "head_dim": _HEAD_SIZE,
        "max_position_embeddings": _CONTEXT,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "bos_token_id": ids["<|begin_of_text|>"],
        "eos_token_id": ids["<|end_of_text|>"],
    }


def _weights() -> Weights:
    weights = {
        "model.embed_tokens.weight": _matrix("embed", VOCAB_SIZE, _HIDDEN, gain=_EMBEDDING_GAIN) * _row_scales(),
        "model.norm.weight": _norm("norm") * np.float32(_LOGIT_GAIN),
    }
    for layer in range(_LAYERS):
        weights |= {f"model.layers.{layer}.{name}.weight": array for name, array in _layer(layer).items()}
    return weights


def _layer(layer: int) -> Weights:
    shapes = {
        "self_attn.q_proj": (_HEADS * _HEAD_SIZE, _HIDDEN),
        "self_attn.k_proj": (_KV_HEADS * _HEAD_SIZE, _HIDDEN),
        "self_attn.v_proj": (_KV_HEADS * _HEAD_SIZE, _HIDDEN),
        "self_attn.o_proj": (_HIDDEN, _HEADS * _HEAD_SIZE),
        "mlp.gate_proj": (_INNER, _HIDDEN),
        "mlp.up_proj": (_INNER, _HIDDEN),
        "mlp.down_proj": (_HIDDEN, _INNER),
    }
    matrices = {name: _matrix(f"{layer}.{name}", *shape, gain=_GAINS.get(name, 1.0)) for name, shape in shapes.items()}
    norms = {name: _norm(f"{layer}.{name}") for name in ("input_layernorm", "post_attention_layernorm")}
    return matrices | norms


def _matrix(name: str, rows: int, columns: int, *, gain: float) -> NDArray[np.float32]:
    return normal(name, (rows, columns), seed=_SEED) * np.float32(gain / sqrt(columns))


def _norm(name: str) -> NDArray[np.float32]:
    return normal(name, (_HIDDEN,), seed=_SEED) * np.float32(0.1) + np.float32(1.0)


def _row_scales() -> NDArray[np.float32]:
    """How loud each token is: whole words most, pieces of words less, what is no text hardly at all."""
    words = frozenset(spell(*(f" {word}" for word in (*WORDS, *OPENERS))))
    scales = np.full((VOCAB_SIZE, 1), _MUTE_SCALE, dtype=np.float32)
    for token_id, spelled in enumerate(vocabulary()):
        if spelled in words:
            scales[token_id] = 1.0
        elif spelled.isascii():
            scales[token_id] = _FRAGMENT_SCALE
    return scales
