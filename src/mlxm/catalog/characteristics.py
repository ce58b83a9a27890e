"""What a model is, read from its files alone; what they do not say is None or "unknown", never "no".

Reading executes nothing: templates are searched and never rendered, and programs that come with a model stay unread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

Kind = Literal["text", "vision", "embedding", "reranker", "audio", "unknown"]
Answer = Literal["yes", "no", "unknown"]
Tier = Literal["tags", "family", "config", "template"]


class Capability(msgspec.Struct, frozen=True):
    """Whether a model can do something, the tier that decided (None while unknown) and what it saw."""

    answer: Answer = "unknown"
    tier: Tier | None = None
    reason: str = "nothing says so"


class Quantisation(msgspec.Struct, frozen=True, kw_only=True):
    """How weights are packed: `mode` is affine, mxfp4, nvfp4, mxfp8, gptq, awq, fp8, ...; `overrides` counts layers."""

    bits: int | None
    group_size: int | None = None
    mode: str = "affine"
    overrides: int = 0
    override_bits: tuple[int, ...] = ()


class CacheShape(msgspec.Struct, frozen=True, kw_only=True):
    """What one sequence keeps: layers that keep every token, layers that keep a window, and a state of fixed size."""

    full_layers: int
    window_layers: int = 0
    window: int | None = None
    values_per_token: int
    """Numbers per token and full layer: keys and values of all KV heads, or the latent of MLA."""
    window_values_per_token: int = 0
    state_values: int = 0
    """Numbers that recurrent layers keep for a sequence of any length."""


class Characteristics(msgspec.Struct, frozen=True, kw_only=True):
    """A model as its files describe it; `quantisation` None with a `dtype` means not quantised, without one unknown."""

    kind: Kind = "unknown"
    kind_reason: str = "nothing says so"
    family: str = "unknown"
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
    """The window that mlx-lm applies, None where every layer sees everything."""
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


def describe(folder: Path, *, name: str = "", tags: Sequence[str] = ()) -> Characteristics:
    """What the files in `folder` say; raises ModelBroken naming the file that cannot be understood."""
    raise NotImplementedError


def describe_config(
    config: Mapping[str, Any],
    *,
    name: str = "",
    tags: Sequence[str] = (),
    template: str | None = None,
    parameters: int | None = None,
    size_bytes: int | None = None,
) -> Characteristics:
    """What config.json alone says, for models that are not here; `parameters` as the Hub counts them. Never raises."""
    raise NotImplementedError
