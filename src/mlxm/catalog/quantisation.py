"""How a model's weights are packed, as config.json tells it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from mlxm.catalog.config import Config

_MODE_DEFAULTS: Final = {"affine": (4, 64), "mxfp4": (4, 32), "nvfp4": (4, 16), "mxfp8": (8, 32)}
"""Bits and group size that mlx takes for a mode."""
_METHOD_BITS: Final = {"mxfp4": 4, "fp8": 8, "mxfp8": 8, "bitnet": 2, "fbgemm_fp8": 8, "nvfp4": 4}
_LARGEST_BITS: Final = 32
_IN_NAME: Final = re.compile(
    r"(?<![a-z0-9])(?P<bits>[2-8])[-_ ]?bits?(?![a-z])|(?P<mode>mxfp4|nvfp4|mxfp8)", re.IGNORECASE
)
_UNPACKED_IN_NAME: Final = re.compile(r"(?<![a-z0-9])(bf16|fp16|fp32|f16|f32)(?![a-z0-9])", re.IGNORECASE)
_DTYPES: Final = {"bf16": "bfloat16", "fp16": "float16", "f16": "float16", "fp32": "float32", "f32": "float32"}


class Quantisation(msgspec.Struct, frozen=True, kw_only=True):
    """How weights are packed: `mode` is affine, mxfp4, nvfp4, mxfp8, gptq, awq, fp8, ...

    `overrides` counts the layers with settings of their own, `override_bits` are the bits they use.
    """

    bits: int | None
    group_size: int | None = None
    mode: str = "affine"
    overrides: int = 0
    override_bits: tuple[int, ...] = ()


def quantisation_of(config: Config) -> Quantisation | None:
    """What config.json says about packing, None when it says nothing."""
    ours = config.part("quantization")
    if ours:
        return _of_mlx(ours)
    theirs = config.part("quantization_config")
    if not theirs:
        return None
    return _of_others(theirs) if isinstance(theirs.get("quant_method"), str) else _of_mlx(theirs)


def quantisation_of_name(name: str) -> Quantisation | None:
    """What a name such as Qwen3-4B-4bit says."""
    found = _IN_NAME.search(name)
    if found is None:
        return None
    if found["mode"] is not None:
        mode = found["mode"].lower()
        bits, group_size = _MODE_DEFAULTS[mode]
        return Quantisation(bits=bits, group_size=group_size, mode=mode)
    return Quantisation(bits=int(found["bits"]))


def dtype_of(config: Config) -> str | None:
    """The dtype that config.json names: dtype, or torch_dtype as it was called before."""
    for key in ("dtype", "torch_dtype"):
        value = config.value(key)
        if isinstance(value, str) and value:
            return value.removeprefix("torch.")
    return None


def dtype_of_name(name: str) -> str | None:
    """The dtype in a name such as Qwen3-4B-bf16."""
    found = _UNPACKED_IN_NAME.search(name)
    return None if found is None else _DTYPES[found[0].lower()]


def layer_settings(config: Config) -> Mapping[str, Mapping[str, Any]]:
    """The settings of single layers by their path."""
    ours = config.part("quantization") or config.part("quantization_config")
    return {path: value for path, value in ours.items() if isinstance(value, Mapping) and "bits" in value}


def _of_mlx(settings: Mapping[str, Any]) -> Quantisation:
    mode = settings.get("mode")
    mode = mode if isinstance(mode, str) else "affine"
    bits, group_size = _MODE_DEFAULTS.get(mode, (None, None))
    given_bits, given_group_size = _count(settings.get("bits")), _count(settings.get("group_size"))
    own = [value for value in settings.values() if isinstance(value, Mapping)]
    own_bits = {_count(value.get("bits")) for value in own}
    return Quantisation(
        bits=bits if given_bits is None else given_bits,
        group_size=group_size if given_group_size is None else given_group_size,
        mode=mode,
        overrides=len(own),
        override_bits=tuple(sorted(bits for bits in own_bits if bits is not None)),
    )


def _of_others(settings: Mapping[str, Any]) -> Quantisation:
    """GPTQ, AWQ, bitsandbytes, fp8, compressed-tensors and their like."""
    method = settings["quant_method"]
    bits = _count(settings.get("bits")) or _METHOD_BITS.get(method) or _bits_inside(settings)
    return Quantisation(bits=bits, group_size=_count(settings.get("group_size")), mode=method)


def _bits_inside(settings: Mapping[str, Any]) -> int | None:
    if settings.get("load_in_4bit") is True or settings.get("quant_algo") == "NVFP4":
        return 4
    if settings.get("load_in_8bit") is True:
        return 8
    groups = settings.get("config_groups")
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if isinstance(weights, Mapping):
            return _count(weights.get("num_bits"))
    return None


def _count(value: object) -> int | None:
    """A positive whole number that can be meant."""
    return value if type(value) is int and 0 < value <= _LARGEST_BITS * _LARGEST_BITS else None
