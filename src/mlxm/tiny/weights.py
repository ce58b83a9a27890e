"""Random weights that are the same bytes everywhere, and the safetensors file that holds them.

Only integers and single multiplications are involved, so no platform's math library has a say in the result.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from math import prod, sqrt
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_WORDS_SUMMED: Final = 4
_WORD_VALUES: Final = 1 << 16
_SPREAD: Final = sqrt(_WORDS_SUMMED / 12) * _WORD_VALUES
"""The standard deviation of the sum of four uniform 16-bit words."""

_DTYPES: Final = {"float32": "F32", "float16": "F16", "uint32": "U32", "uint8": "U8", "int32": "I32"}


def normal(name: str, shape: tuple[int, ...], *, seed: int) -> NDArray[np.float32]:
    """Numbers near the standard normal distribution that depend on nothing but the seed, the name and the shape.

    Each is the sum of four 16-bit words of a counter-based generator.
    """
    words = np.random.Philox(key=_key(name, seed)).random_raw(prod(shape)).view(np.uint16)
    sums = words.reshape(-1, _WORDS_SUMMED).sum(axis=1, dtype=np.int32) - _WORDS_SUMMED * (_WORD_VALUES - 1) // 2
    values: NDArray[np.float32] = sums.astype(np.float32) * np.float32(1 / _SPREAD)
    return values.reshape(shape)


def write_safetensors(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays as one safetensors file, in the order of their names."""
    header: dict[str, object] = {"__metadata__": {"format": "mlx"}}
    ordered = [(name, np.asarray(arrays[name], order="C")) for name in sorted(arrays)]
    end = 0
    for name, array in ordered:
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": _DTYPES[array.dtype.name], "shape": list(array.shape), "data_offsets": [begin, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for _, array in ordered:
            file.write(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())


def _key(name: str, seed: int) -> int:
    """A 128-bit generator key: one stream of its own for each array, whatever else a model holds."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:16], "big")
