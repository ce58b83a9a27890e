"""What the headers of all weight files tell: how many parameters, in which dtype, and that the files are whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from mlxm.catalog.quantisation import Quantisation
from mlxm.checkpoint.safetensors import Header, Tensor, read_header, weight_files

__all__ = ["Header", "Tensor", "Weights", "read_header", "read_weights", "weigh", "weight_files"]

_DTYPES: Final = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
_FP8: Final = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
_WORD_BITS: Final = {"U32": 32, "I32": 32, "U8": 8, "I8": 8, "U16": 16, "I16": 16}
_SCALES: Final = (".scales", "_scales", "_scale_inv", "_scale", ".absmax", ".global_scale")
_NOT_WEIGHTS: Final = (
    *(*_SCALES, ".biases", ".qzeros", ".g_idx", "_shape", ".quant_map", ".nested_absmax", ".nested_quant_map"),
    *(".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4", ".SCB", ".weight_format"),
)
"""Endings of tensors that help to unpack others."""
_PACKED_METHODS: Final = (
    "gptq",
    "awq",
    "bitsandbytes",
    "mxfp4",
    "compressed-tensors",
    "bitnet",
    "modelopt",
    "auto-round",
)


class Weights(msgspec.Struct, frozen=True, kw_only=True):
    """All weight files of a model together."""

    files: tuple[str, ...]
    tensors: tuple[str, ...]
    parameters: int
    """Numbers of the model, packed ones counted one by one."""
    data_bytes: int
    """What they take, in files and in memory alike."""
    dtype: str | None
    """The dtype in which the model computes: the commonest one among what is not packed."""
    is_packed: bool


def read_weights(folder: Path, quantisation: Quantisation | None, layers: Mapping[str, Mapping[str, Any]]) -> Weights:
    """Check and weigh every weight file in `folder`; raises ModelBroken naming the one that is damaged."""
    files = weight_files(folder)
    tensors: dict[str, Tensor] = {}
    for path in files:
        tensors |= read_header(path).tensors
    return weigh(tuple(path.name for path in files), tensors, quantisation, layers)


def weigh(
    files: tuple[str, ...],
    tensors: Mapping[str, Tensor],
    quantisation: Quantisation | None,
    layers: Mapping[str, Mapping[str, Any]],
) -> Weights:
    """Count what the tensors hold; `layers` are the settings of single layers by their path."""
    parameters, is_packed = 0, False
    plain: dict[str, int] = {}
    for name, tensor in tensors.items():
        packed = _packed_values(name, tensor, tensors, quantisation, layers)
        if packed is not None:
            parameters, is_packed = parameters + packed, True
        elif not name.endswith(_NOT_WEIGHTS):
            parameters += tensor.num_values
        is_packed = is_packed or tensor.dtype in _FP8
        if tensor.dtype in _DTYPES and packed is None and not name.endswith("_scale_inv"):
            plain[tensor.dtype] = plain.get(tensor.dtype, 0) + tensor.num_bytes
    return Weights(
        files=files,
        tensors=tuple(tensors),
        parameters=parameters,
        data_bytes=sum(tensor.num_bytes for tensor in tensors.values()),
        dtype=_DTYPES[max(plain, key=lambda dtype: plain[dtype])] if plain else None,
        is_packed=is_packed,
    )


def _packed_values(
    name: str,
    tensor: Tensor,
    tensors: Mapping[str, Tensor],
    quantisation: Quantisation | None,
    layers: Mapping[str, Mapping[str, Any]],
) -> int | None:
    """How many numbers are packed into a tensor, None when it is not packed."""
    word = _WORD_BITS.get(tensor.dtype)
    if word is None or name.endswith(_NOT_WEIGHTS):
        return None
    path = name.removesuffix(".weight")
    scales = tensors.get(f"{path}.scales")
    if scales is not None and name.endswith(".weight"):
        return _packed_by_mlx(tensor, scales, quantisation, layers.get(path, {}))
    if quantisation is None or quantisation.mode not in _PACKED_METHODS or quantisation.bits is None:
        return None
    return tensor.num_values * word // quantisation.bits


def _packed_by_mlx(tensor: Tensor, scales: Tensor, quantisation: Quantisation | None, own: Mapping[str, Any]) -> int:
    """Bits count where they are known; otherwise there is one scale for each group."""
    bits = own.get("bits", None if quantisation is None else quantisation.bits)
    if type(bits) is int and bits > 0:
        return tensor.num_values * 32 // bits
    group_size = own.get("group_size", None if quantisation is None else quantisation.group_size)
    return scales.num_values * (group_size if type(group_size) is int else 64)
