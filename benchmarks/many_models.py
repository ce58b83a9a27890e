"""A Hub cache full of models, each as large as a real one in all that is read of it: headers, configs, links.

The weights themselves are zeros that the disk does not store.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

LAYERS = 28
MATRICES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
ROWS, COLUMNS = 1024, 128
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 1024,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "vocab_size": 151936,
    "quantization": {"group_size": 64, "bits": 4},
}


def fill_cache(hub_cache: Path, num_models: int) -> None:
    """Put that many models into the cache, as the Hub's library lays them out."""
    header, data_bytes = make_header()
    for number in range(num_models):
        write_model(hub_cache / f"models--mlx-community--Model-{number:03}-4bit", f"{number:040x}", header, data_bytes)


def make_header() -> tuple[bytes, int]:
    """The header of a quantised model's weights, and how many bytes follow it."""
    tensors: dict[str, object] = {}
    end = 0
    for layer in range(LAYERS):
        for matrix in (*MATRICES, *MLP):
            for part, dtype, shape, size in (
                ("weight", "U32", [ROWS, COLUMNS], 4 * ROWS * COLUMNS),
                ("scales", "BF16", [ROWS, COLUMNS // 8], ROWS * COLUMNS // 4),
                ("biases", "BF16", [ROWS, COLUMNS // 8], ROWS * COLUMNS // 4),
            ):
                begin, end = end, end + size
                name = f"model.layers.{layer}.{matrix}.{part}"
                tensors[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    return json.dumps(tensors).encode(), end


def write_model(folder: Path, commit: str, header: bytes, data_bytes: int) -> None:
    """One model of one commit."""
    snapshot = folder / "snapshots" / commit
    for path in (folder / "blobs", folder / "refs", snapshot):
        path.mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if tools %}{{ tools }}{% endif %}"
    texts = {
        "config.json": json.dumps(CONFIG),
        "tokenizer.json": "{}",
        "tokenizer_config.json": json.dumps({"chat_template": template}),
        "README.md": "---\ntags:\n- mlx\n---\n",
    }
    for place, (name, text) in enumerate(texts.items()):
        blob = folder / "blobs" / f"{place:040x}"
        blob.write_text(text)
        (snapshot / name).symlink_to(f"../../blobs/{blob.name}")
    weights = folder / "blobs" / f"{len(texts):064x}"
    with weights.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + data_bytes)
    (snapshot / "model.safetensors").symlink_to(f"../../blobs/{weights.name}")
