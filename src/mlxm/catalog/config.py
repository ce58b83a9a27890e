"""config.json read with tolerance: numbers under any of their names, in a model's text part or around it.

A value of the wrong kind counts as absent; what is absent is None.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

_TEXT_PARTS: Final = ("text_config", "llm_config", "language_config", "thinker_config", "text_model", "decoder")
_LARGEST: Final = 2**53
_MOST_LAYERS: Final = 10_000
"""Layers are looked at one by one; no model has as many as this."""
_TWO_FOR_PADDING: Final = frozenset({"roberta", "xlm-roberta", "xlm_roberta", "camembert", "mpnet"})
"""Their position numbers begin after the padding token's, so that two of them are no positions."""

_LENGTHS: Final = (
    *("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length", "max_seq_len", "seq_length"),
    *("model_max_length", "max_target_positions", "n_text_ctx"),
)
_LAYERS: Final = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "n_text_layer")
_HEADS: Final = ("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads", "n_text_head")
_KV_HEADS: Final = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num", "n_kv_heads")
_HEAD_DIMS: Final = ("head_dim", "attention_head_dim", "kv_channels", "d_head")
_HIDDEN: Final = ("hidden_size", "n_embd", "d_model", "dim", "hidden_dim", "model_dim", "n_text_state")
_VOCABULARY: Final = ("vocab_size", "padded_vocab_size", "n_vocab")
_WINDOWS: Final = ("sliding_window", "attention_window_size", "sliding_window_size", "window_size", "local_attention")

_HEAD_SIZES: Final = {"gemma": 256, "gemma2": 256, "gemma3_text": 256, "qwen3": 128, "qwen3_moe": 128, "glm4": 128}
"""What head_dim is when it is not given, for classes whose heads do not share out the hidden size."""
_NESTED_SIZES: Final[dict[str, dict[str, int]]] = {
    "gemma3_text": {
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
    },
    "mistral": {"num_attention_heads": 32, "num_key_value_heads": 8},
    "llama": {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32000,
        "max_position_embeddings": 2048,
    },
}
"""The text part of a vision model leaves out what equals its class's default."""


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """The sizes of a model's text part."""

    context_length: int | None
    layers: int | None
    heads: int | None
    kv_heads: int | None
    head_dim: int | None
    hidden_size: int | None
    vocab_size: int | None
    sliding_window: int | None


class Config:
    """One config.json; every question is answered from the text part first, where there is one."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.whole = values
        self.text = _text_part(values)
        self._defaults = {} if self.text is values else _NESTED_SIZES.get(self.text_type or "", {})

    @property
    def model_type(self) -> str | None:
        """The architecture of the whole."""
        return _text(self.whole.get("model_type"))

    @property
    def text_type(self) -> str | None:
        """The architecture of the text part."""
        return _text(self.text.get("model_type")) or self.model_type

    @property
    def architectures(self) -> tuple[str, ...]:
        """The classes that the model was saved from."""
        named = self.whole.get("architectures")
        if isinstance(named, str):
            return (named,)
        return tuple(name for name in named if isinstance(name, str)) if isinstance(named, list) else ()

    def number(self, *keys: str) -> int | None:
        """The first whole number under one of these names."""
        for part in (self.text, self.whole, self._defaults):
            for key in keys:
                value = part.get(key)
                if type(value) is int and 0 <= value < _LARGEST:  # true is no number
                    return value
        return None

    def positive(self, *keys: str) -> int | None:
        """The first whole number under one of these names, unless it is 0."""
        value = self.number(*keys)
        return value if value is not None and value > 0 else None

    def numbers(self, key: str) -> tuple[int, ...]:
        """The list of whole numbers under a name, empty when there is none."""
        value = self.value(key)
        return tuple(item for item in value if type(item) is int) if isinstance(value, list) else ()

    def words(self, *keys: str) -> tuple[str, ...]:
        """The first list of texts under one of these names."""
        for part in (self.text, self.whole):
            for key in keys:
                value = part.get(key)
                if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
                    return tuple(value)
        return ()

    def value(self, key: str) -> Any:
        """Whatever stands under a name."""
        return self.text[key] if key in self.text else self.whole.get(key)

    def part(self, key: str) -> Mapping[str, Any]:
        """The object under a name, empty when there is none."""
        value = self.value(key)
        return value if isinstance(value, Mapping) else {}

    def shape(self) -> Shape:
        """The sizes, as far as they are given."""
        heads = self.positive(*_HEADS)
        hidden = self.positive(*_HIDDEN)
        if self.text_type in ("mamba", "mamba2"):
            heads = None  # what it calls heads are parts of a state
        context = self._context()
        return Shape(
            context_length=context,
            layers=self._layers(),
            heads=heads,
            kv_heads=self._kv_heads(heads),
            head_dim=self._head_dim(heads, hidden),
            hidden_size=hidden,
            vocab_size=self.positive(*_VOCABULARY),
            sliding_window=self._window(context),
        )

    def _context(self) -> int | None:
        length = self.positive(*_LENGTHS)
        if self.text_type == "cohere":
            length = self.positive("model_max_length") or length  # the other is the length of its first training
        if length is not None and self.text_type in _TWO_FOR_PADDING:
            return length - 2 if length > 2 else None  # noqa: PLR2004 - the two of the table's name
        return length

    def _layers(self) -> int | None:
        layers = self.positive(*_LAYERS)
        return None if layers is None or layers > _MOST_LAYERS else layers

    def _kv_heads(self, heads: int | None) -> int | None:
        if heads is None:
            return None
        if self.value("multi_query") is True or (self.text_type == "gpt_bigcode" and self.value("multi_query") is None):
            return 1
        given = self.positive(*_KV_HEADS)
        return heads if given is None else given

    def _head_dim(self, heads: int | None, hidden: int | None) -> int | None:
        if heads is None:
            return None
        given = self.positive(*_HEAD_DIMS)
        if given is None:
            given = _HEAD_SIZES.get(self.text_type or "")
        if given is not None or hidden is None:
            return given
        return hidden // heads or None

    def _window(self, context: int | None) -> int | None:
        """The window that the model was trained with; one as long as the context limits nothing."""
        window = self.positive(*_WINDOWS)
        switched_off = self.value("use_sliding_window") is False
        if window is None or switched_off or (context is not None and window >= context):
            return None
        return window


def _text_part(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The innermost text configuration: a speaking model nests it twice."""
    for key in _TEXT_PARTS:
        part = values.get(key)
        if isinstance(part, Mapping) and part:
            inner = part.get("text_config")
            return inner if isinstance(inner, Mapping) and inner else part
    return values


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
