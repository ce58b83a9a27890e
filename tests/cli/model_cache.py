"""A person's models on disk, written by hand: whole ones with weights that take no room, broken ones, old ones."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mlxm.cli.machine import Machine
from mlxm.cli.main import main
from mlxm.testing.fake_hub import FakeHub

GOLDEN = Path(__file__).with_name("golden")
WRITE_GOLDEN = os.environ.get("MLXM_GOLDEN") == "write"
NOW = 1_767_225_600.0
HOUR_S = 3600.0
DAY_S = 24 * HOUR_S
SMALL_BYTES = 100_000_000
WEIGHTS_BYTES = 200_000
HERE = Machine(now=NOW, budget_bytes=8_000_000_000)
_STYLE = re.compile("\x1b\\[[0-9;?]*[a-zA-Z]")

QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 2560,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "vocab_size": 151936,
    "quantization": {"group_size": 64, "bits": 4},
}
QWEN3_VL = {
    "architectures": ["Qwen3VLForConditionalGeneration"],
    "model_type": "qwen3_vl",
    "image_token_id": 151655,
    "quantization": {"group_size": 64, "bits": 8},
    "vision_config": {"hidden_size": 1152, "depth": 27},
    "text_config": {
        **{key: value for key, value in QWEN3.items() if key != "quantization"},
        "model_type": "qwen3_vl_text",
        "max_position_embeddings": 262144,
    },
}
PLAIN = {
    **{key: value for key, value in QWEN3.items() if key != "quantization"},
    "torch_dtype": "bfloat16",
    "hidden_size": 256,
}
TOOL_TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}{% if tools %}<tool_call>{{ tools }}{% endif %}"


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """It does."""
        return True


@dataclass(frozen=True)
class Ran:
    """How a command line ended, and what it printed."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Cabinet:
    """The folders of one person, and the command line that works on them."""

    user: Path
    hub_cache: Path
    home: Path
    patch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    def run(self, *args: str) -> Ran:
        """Run a command line with pipes."""
        self.capsys.readouterr()
        code = main(args)
        return Ran(code, *self.capsys.readouterr())

    def show(self, *args: str, columns: int) -> str:
        """What a person sees of a command line's result on a terminal."""
        terminal = Terminal()
        with self.patch.context() as patch:
            patch.setenv("COLUMNS", str(columns))
            patch.setenv("TERM", "xterm")
            patch.setattr("sys.stdout", terminal)
            assert main(args) == 0
        return plain(terminal.getvalue())

    def add(
        self,
        name: str,
        files: Mapping[str, bytes],
        *,
        commit: str = "",
        weights_bytes: int = 0,
        bits: int = 4,
        tensor: str = "model.embed_tokens",
        used_s: float = 0.0,
    ) -> Path:
        """Put a snapshot into the Hub's cache as the Hub's own library does; its folder."""
        commit = commit or hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest()
        folder = self.hub_cache / f"models--{name.replace('/', '--')}"
        snapshot = folder / "snapshots" / commit
        for path in (folder / "blobs", folder / "refs", snapshot):
            path.mkdir(parents=True, exist_ok=True)
        for path, content in files.items():
            blob = folder / "blobs" / _blob_name(path, content)
            blob.write_bytes(content)
            os.utime(blob, (NOW - 40 * DAY_S, NOW - 40 * DAY_S))
            link(snapshot, path, blob)
        if weights_bytes:
            draft = folder / "blobs" / "draft"
            write_weights(draft, weights_bytes, bits, tensor)
            # Hashing takes long for what is only said to be large; then any other name does.
            content = draft.read_bytes() if weights_bytes < SMALL_BYTES else f"{name}@{commit}".encode()
            blob = draft.rename(folder / "blobs" / hashlib.sha256(content).hexdigest())
            link(snapshot, "model.safetensors", blob)
            os.utime(blob, (NOW - used_s, NOW - 30 * DAY_S))
        (folder / "refs" / "main").write_text(commit)
        return snapshot


def link(snapshot: Path, path: str, blob: Path) -> None:
    """Let a file of a snapshot lead to its content."""
    place = snapshot / path
    place.parent.mkdir(parents=True, exist_ok=True)
    if not place.is_symlink():
        place.symlink_to(os.path.relpath(blob, place.parent))


def write_weights(path: Path, num_bytes: int, bits: int, tensor: str) -> None:
    """A whole safetensors file of about that size, with one packed matrix of zeros, which the disk does not store."""
    columns = 4096
    groups = columns * 32 // bits // 64
    rows = num_bytes // (4 * columns + 2 * 2 * groups)
    ends = [rows * 4 * columns, rows * (4 * columns + 2 * groups), rows * (4 * columns + 4 * groups)]
    header = json.dumps(
        {
            f"{tensor}.weight": {"dtype": "U32", "shape": [rows, columns], "data_offsets": [0, ends[0]]},
            f"{tensor}.scales": {"dtype": "BF16", "shape": [rows, groups], "data_offsets": ends[:2]},
            f"{tensor}.biases": {"dtype": "BF16", "shape": [rows, groups], "data_offsets": ends[1:]},
        }
    ).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + ends[2])


def text_files(config: Mapping[str, Any] = QWEN3, template: str = TOOL_TEMPLATE) -> dict[str, bytes]:
    """What belongs to weights."""
    return {
        "config.json": json.dumps(config).encode(),
        "tokenizer.json": b'{"model": {"type": "BPE", "vocab": {}, "merges": []}}',
        "tokenizer_config.json": json.dumps({"chat_template": template}).encode(),
        "README.md": b"---\nlicense: mit\ntags:\n- mlx\n---\n# A model\n\nIt *talks*.\n",
    }


def fill(cabinet: Cabinet) -> None:
    """Models of every state."""
    cabinet.add("mlx-community/Qwen3-4B-4bit", text_files(), weights_bytes=2_260_000_000, used_s=120)
    cabinet.add(
        "mlx-community/Qwen3-VL-8B-8bit",
        text_files(QWEN3_VL),
        weights_bytes=9_100_000_000,
        bits=8,
        tensor="vision_tower.blocks",
        used_s=3 * DAY_S,
    )
    cabinet.add("acme/half-here", text_files())
    cabinet.add("acme/torch-only", {**text_files(), "pytorch_model.bin": b"x" * 5000})


def stock(hub: FakeHub, scratch: Path) -> None:
    """Give a Hub models of several kinds, the most wanted first."""
    weights = scratch / "weights"
    write_weights(weights, WEIGHTS_BYTES, 4, "model.embed_tokens")
    large = {"model.safetensors": weights.read_bytes()}
    vision = text_files({**QWEN3_VL, "quantization": {"group_size": 64, "bits": 8}})
    hub.add("mlx-community/Qwen3-4B-4bit", {**text_files(), **large}, downloads=123_456, likes=99)
    hub.add("mlx-community/Qwen3-VL-8B-8bit", {**vision, **large}, downloads=61_000, likes=12)
    hub.add("someone/qwen3-bf16-mlx", {**text_files(PLAIN), **large}, downloads=70)
    hub.add("meta/gated", {**text_files(), **large}, gated=True, downloads=7)
    hub.add("torch/qwen3", {"pytorch_model.bin": b"x"}, library="transformers", tags=("pytorch",), downloads=900_000)


def check_golden(name: str, text: str) -> None:
    """Compare with the file in golden/, or write that when MLXM_GOLDEN=write."""
    path = GOLDEN / name
    if WRITE_GOLDEN:
        path.write_text(text, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == text


def plain(text: str) -> str:
    """What a terminal shows, without its styles and without blanks at the ends of lines."""
    return "\n".join(line.rstrip() for line in _STYLE.sub("", text).split("\n"))


def widest(lines: Iterable[str]) -> int:
    """The longest of some lines."""
    return max(map(len, lines))


def _blob_name(path: str, content: bytes) -> str:
    """Large files lie under their sha256, others under git's hash."""
    if path.endswith((".safetensors", ".bin", "tokenizer.json")):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
