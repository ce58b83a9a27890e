"""Model folders for tests: small, whole, and to be damaged at will."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

SIZES = {"F32": 4, "F16": 2, "BF16": 2, "U32": 4, "U8": 1, "I32": 4, "F8_E4M3": 1}
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
    "vocab_size": 128,
    "torch_dtype": "bfloat16",
}
COMMIT = "0123456789abcdef0123456789abcdef01234567"

Shapes = Mapping[str, tuple[str, tuple[int, ...]]]


def safetensors(shapes: Shapes, *, metadata: dict[str, str] | None = None) -> bytes:
    """A whole safetensors file with tensors of zeros."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    end = 0
    for name, (dtype, shape) in shapes.items():
        begin, end = end, end + prod(shape) * SIZES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + bytes(end)


PLAIN: Shapes = {"model.embed_tokens.weight": ("BF16", (128, 64)), "model.norm.weight": ("BF16", (64,))}


def model_files(config: Mapping[str, Any] = CONFIG, shapes: Shapes = PLAIN) -> dict[str, bytes]:
    """The files of a small whole model."""
    return {
        "config.json": json.dumps(config).encode(),
        "tokenizer_config.json": json.dumps({"chat_template": "{% if tools %}{{ tools }}{% endif %}"}).encode(),
        "tokenizer.json": b'{"model": {"type": "BPE", "vocab": {}, "merges": []}}',
        "model.safetensors": safetensors(shapes),
    }


def write_folder(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write files into a folder, made when missing."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def write_cached(
    hub_cache: Path, name: str, files: Mapping[str, bytes], *, commit: str = COMMIT, main: bool = True
) -> Path:
    """Put a snapshot into a Hub cache as the Hub's own library does: files in blobs, and links to them."""
    repo = hub_cache / f"models--{name.replace('/', '--')}"
    snapshot = repo / "snapshots" / commit
    (repo / "blobs").mkdir(parents=True, exist_ok=True)
    snapshot.mkdir(parents=True)
    for file, content in files.items():
        blob = repo / "blobs" / f"{abs(hash(content)):016x}"
        blob.write_bytes(content)
        (snapshot / file).parent.mkdir(exist_ok=True)
        (snapshot / file).symlink_to(Path("../" * file.count("/"), "../../blobs", blob.name))
    if main:
        (repo / "refs").mkdir(exist_ok=True)
        (repo / "refs" / "main").write_text(commit)
    return snapshot
