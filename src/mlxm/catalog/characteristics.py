"""What a model is, read from its files alone; what they do not say is None or "unknown", never "no".

Reading executes nothing: templates are searched and never rendered, and programs that come with a model stay unread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from mlxm.catalog.cache_shape import NOTHING, CacheShape, cache_shape_of
from mlxm.catalog.capabilities import Answer, Capability, Evidence, Tier, reasoning_of, tool_use_of
from mlxm.catalog.card import card_tags
from mlxm.catalog.config import Config
from mlxm.catalog.families import UNKNOWN, family_of_name, family_of_type
from mlxm.catalog.headers import Weights, read_weights
from mlxm.catalog.inventory import list_files
from mlxm.catalog.kinds import Kind, kind_of
from mlxm.catalog.parameters import parameters_of_name
from mlxm.catalog.quantisation import (
    Quantisation,
    dtype_of,
    dtype_of_name,
    layer_settings,
    quantisation_of,
    quantisation_of_name,
)
from mlxm.checkpoint.files import FETCH_AGAIN, printable, read_object, read_text
from mlxm.checkpoint.safetensors import has_weights
from mlxm.errors import ModelBroken

__all__ = [
    "Answer",
    "CacheShape",
    "Capability",
    "Characteristics",
    "Kind",
    "Quantisation",
    "Tier",
    "describe",
    "describe_config",
]

KV_VALUE_BYTES: Final = 2
"""Keys and values are kept as 16-bit numbers."""
_MAX_CONFIG_BYTES: Final = 16 * 1024 * 1024
_OWN_CODE: Final = ("auto_map", "model_file", "custom_pipelines")


class Characteristics(msgspec.Struct, frozen=True, kw_only=True):
    """A model as its files describe it; `quantisation` None with a `dtype` means not quantised, without one unknown."""

    kind: Kind = "unknown"
    kind_reason: str = "nothing says so"
    family: str = UNKNOWN
    architecture: str | None = None
    """model_type of config.json."""
    parameters: int | None = None
    parameters_from: Literal["headers", "hub", "name"] | None = None
    quantisation: Quantisation | None = None
    dtype: str | None = None
    context_length: int | None = None
    layers: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    hidden_size: int | None = None
    vocab_size: int | None = None
    sliding_window: int | None = None
    """The window that config.json names; `cache` tells whether mlx-lm applies it."""
    tool_use: Capability = Capability()
    reasoning: Capability = Capability()
    kv_bytes_per_token: int | None = None
    """What each further token takes while no window is full; None where that is not known."""
    cache: CacheShape | None = None
    weights_bytes: int | None = None
    size_bytes: int | None = None
    """All files of the model, exactly."""
    own_code: tuple[str, ...] = ()
    """Keys of config.json that name programs of the model's own; they are never run."""


class _Surroundings(msgspec.Struct, frozen=True, kw_only=True):
    """What is known beside config.json."""

    name: str = ""
    tags: Sequence[str] = ()
    files: Sequence[str] = ()
    tokenizer_config: Mapping[str, Any] = {}
    template: str | None = None
    weights: Weights | None = None
    hub_parameters: int | None = None
    size_bytes: int | None = None


def describe(folder: Path, *, name: str = "", tags: Sequence[str] = (), check_weights: bool = True) -> Characteristics:
    """What the files in `folder` say; raises ModelBroken naming the file that cannot be understood.

    The headers of weight files are checked in full. A folder without any, or any but `check_weights`, is described by
    its config.json alone.
    """
    values = read_object(folder / "config.json", limit_bytes=_MAX_CONFIG_BYTES)
    if values is None:
        raise ModelBroken(f"{printable(folder / 'config.json')} is missing.", hint=FETCH_AGAIN)
    config = Config(values)
    tokenizer_config = read_object(folder / "tokenizer_config.json") or {}
    files = list_files(folder)
    weights = None
    if check_weights and has_weights(folder):
        weights = read_weights(folder, quantisation_of(config), layer_settings(config))
    return _assemble(
        config,
        _Surroundings(
            name=name,
            tags=(*tags, *card_tags(folder)),
            files=files.top_names,
            tokenizer_config=tokenizer_config,
            template=_find_template(folder, tokenizer_config),
            weights=weights,
            size_bytes=files.real_bytes,
        ),
    )


def describe_config(
    config: Mapping[str, Any],
    *,
    name: str = "",
    tags: Sequence[str] = (),
    template: str | None = None,
    parameters: int | None = None,
    size_bytes: int | None = None,
) -> Characteristics:
    """What config.json alone says, for models that are not here; `parameters` as the Hub counts them. Never raises.

    `template` None means that it is not known, "" that there is none. An empty `config` leaves the name and the tags.
    """
    around = _Surroundings(name=name, tags=tags, template=template, hub_parameters=parameters, size_bytes=size_bytes)
    return _assemble(Config(config), around)


def _assemble(config: Config, around: _Surroundings) -> Characteristics:
    tensors = None if around.weights is None else around.weights.tensors
    kind, reason = kind_of(
        config if config.whole else None, name=around.name, tags=around.tags, files=around.files, tensors=tensors
    )
    family = family_of_type(config.model_type)
    if family == UNKNOWN:
        family = family_of_name(around.name)
    evidence = Evidence(
        kind=kind,
        family=family,
        name=around.name,
        tags=around.tags,
        tokenizer_config=around.tokenizer_config,
        template=around.template,
    )
    parameters, parameters_from = _parameters(around)
    shape = config.shape()
    cache = _cache(config, kind)
    return Characteristics(
        kind=kind,
        kind_reason=reason,
        family=family,
        architecture=config.model_type,
        parameters=parameters,
        parameters_from=parameters_from,
        quantisation=_quantisation(config, around),
        dtype=_dtype(config, around),
        context_length=shape.context_length,
        layers=shape.layers,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        hidden_size=shape.hidden_size,
        vocab_size=shape.vocab_size,
        sliding_window=shape.sliding_window,
        tool_use=tool_use_of(evidence),
        reasoning=reasoning_of(evidence),
        kv_bytes_per_token=None if cache is None else _bytes_per_token(cache),
        cache=cache,
        weights_bytes=None if around.weights is None else around.weights.data_bytes,
        size_bytes=around.size_bytes,
        own_code=tuple(key for key in _OWN_CODE if config.whole.get(key)),
    )


def _parameters(around: _Surroundings) -> tuple[int | None, Literal["headers", "hub", "name"] | None]:
    if around.weights is not None:
        return around.weights.parameters, "headers"
    if around.hub_parameters is not None:
        return around.hub_parameters, "hub"
    named = parameters_of_name(around.name)
    return named, None if named is None else "name"


def _quantisation(config: Config, around: _Surroundings) -> Quantisation | None:
    """A name counts only where neither config.json nor the weights are at hand."""
    told = quantisation_of(config)
    if told is not None or around.weights is not None or config.whole:
        return told
    return quantisation_of_name(around.name)


def _dtype(config: Config, around: _Surroundings) -> str | None:
    if around.weights is not None and around.weights.dtype is not None:
        return around.weights.dtype
    told = dtype_of(config)
    return dtype_of_name(around.name) if told is None and not config.whole else told


def _cache(config: Config, kind: Kind) -> CacheShape | None:
    if kind in ("embedding", "reranker"):
        return NOTHING
    return None if kind == "audio" else cache_shape_of(config, config.shape())


def _bytes_per_token(cache: CacheShape) -> int:
    values = cache.full_layers * cache.values_per_token + cache.window_layers * cache.window_values_per_token
    return values * KV_VALUE_BYTES


def _find_template(folder: Path, tokenizer_config: Mapping[str, Any]) -> str:
    """The text of every chat template together; they are searched for words, so their order does not matter."""
    found = [read_text(folder / "chat_template.jinja") or ""]
    for holder in (tokenizer_config, read_object(folder / "chat_template.json") or {}):
        value = holder.get("chat_template")
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, list):
            found += [entry["template"] for entry in value if _is_named_template(entry)]
    return "\n".join(text for text in found if text)


def _is_named_template(entry: object) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("template"), str)
