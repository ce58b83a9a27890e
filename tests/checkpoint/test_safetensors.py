from __future__ import annotations

import json
import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlxm.checkpoint.safetensors import (
    MAX_HEADER_BYTES,
    Tensor,
    has_weights,
    indexed_files,
    parse_header,
    read_header,
    weight_files,
)
from mlxm.errors import ModelBroken

NUM_MUTATIONS = 100_000
ENTRY = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
OTHER = {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]}
WHOLE: dict[str, Any] = {"__metadata__": {"format": "mlx"}, "a": ENTRY, "b": OTHER}
DATA_BYTES = 32


def encode(header: object, data_bytes: int = DATA_BYTES) -> bytes:
    """A file with that header."""
    content = json.dumps(header).encode()
    return struct.pack("<Q", len(content)) + content + bytes(data_bytes)


def changed(**differences: object) -> dict[str, Any]:
    """The whole header with another entry `a`."""
    return {**WHOLE, "a": {**ENTRY, **differences}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a file under test lies."""
    return tmp_path / "model.safetensors"


def test_a_whole_header_is_read(path: Path) -> None:
    """Tensors by name with their place, and the metadata."""
    path.write_bytes(encode(WHOLE))
    header = read_header(path)
    assert header.metadata == {"format": "mlx"}
    assert header.tensors == {"a": Tensor("F32", (2, 3), 0, 24), "b": Tensor("BF16", (4,), 24, 32)}
    assert (header.tensors["a"].num_bytes, header.tensors["a"].num_values) == (24, 6)


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"a": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [0, 7], "data_offsets": [0, 0]}},
        {"a": {"dtype": "F4", "shape": [8], "data_offsets": [0, 4]}},
        {"b": {**OTHER, "data_offsets": [0, 8]}, "a": {**ENTRY, "data_offsets": [8, 32]}},
    ],
)
def test_unusual_headers_are_valid(path: Path, header: dict[str, Any]) -> None:
    """No tensors, scalars, empty tensors, half bytes, any order."""
    ends = [entry["data_offsets"][1] for entry in header.values()]
    path.write_bytes(encode(header, max(ends, default=0)))
    assert read_header(path).tensors.keys() == header.keys()


def test_spaces_may_fill_up_a_header(path: Path) -> None:
    """Writers align the data so."""
    content = json.dumps(WHOLE).encode() + b"     "
    path.write_bytes(struct.pack("<Q", len(content)) + content + bytes(DATA_BYTES))
    assert len(read_header(path).tensors) == 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "0 bytes, too few"),
        (b"1234567", "7 bytes, too few"),
        (struct.pack("<Q", 2**63) + b"{}", "more than 100000000"),
        (struct.pack("<Q", MAX_HEADER_BYTES + 1) + b"{}", "more than 100000000"),
        (struct.pack("<Q", 100) + b"{}", "would be 100 bytes long, but the file has 10"),
        (struct.pack("<Q", 0), "does not begin as"),
        (struct.pack("<Q", 2) + b"[]", "does not begin as"),
        (struct.pack("<Q", 3) + b" {}", "does not begin as"),
        (struct.pack("<Q", 3) + b"{\xff}", "not valid JSON"),
        (struct.pack("<Q", 2) + b"{a", "not valid JSON"),
        (struct.pack("<Q", 200_002) + b'{"a":' * 40_000 + b"{}", "not valid JSON"),
        (struct.pack("<Q", 5_006) + b'{"a":' + b"9" * 20_000 + b"}", "not valid JSON"),
        (encode({"__metadata__": {"a": 1}}, 0), "not made of texts"),
        (encode({"__metadata__": []}, 0), "not made of texts"),
        (encode({"a": 1}), "does not consist of"),
        (encode({"a": {}}), "does not consist of"),
        (encode(changed(more=1)), "does not consist of"),
        (encode(changed(dtype="F31")), "dtype of 'a' is not known: 'F31'"),
        (encode(changed(dtype=[])), "dtype of 'a' is not known"),
        (encode(changed(shape=6)), "shape of 'a' is none"),
        (encode(changed(shape=[-2, -3])), "negative number"),
        (encode(changed(shape=[2.0, 3])), "shape of 'a' is none"),
        (encode(changed(shape=[True, 6])), "shape of 'a' is none"),
        (encode(changed(shape=[2**40, 0], data_offsets=[0, 0])), "shape of 'a' is none"),
        (encode(changed(shape=[1] * 33)), "shape of 'a' is none"),
        (encode(changed(data_offsets=[0])), "offsets of 'a' are none"),
        (encode(changed(data_offsets=[24, 0])), "offsets of 'a' are none"),
        (encode(changed(data_offsets=[-24, 0])), "negative number"),
        (encode(WHOLE).replace(b"[0, 24]", b"[-0,24]"), "negative number"),
        (encode(changed(data_offsets="ab")), "offsets of 'a' are none"),
        (encode(changed(shape=[2, 4])), "'a' has 24 bytes, which is not F32"),
        (encode(changed(dtype="F16")), "'a' has 24 bytes, which is not F16"),
        (encode({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 2]}}, 2), "which is not F4"),
        (encode({**WHOLE, "b": {**OTHER, "data_offsets": [20, 28]}}), "'b' overlaps"),
        (encode({**WHOLE, "b": {**OTHER, "data_offsets": [28, 36]}}, 36), "4 bytes before 'b' belong to no tensor"),
        (encode({"b": OTHER}), "24 bytes before 'b'"),
        (encode(WHOLE, 31), "holds 31 bytes of data where its header promises 32"),
        (encode(WHOLE, 33), "holds 33 bytes of data where its header promises 32"),
        (encode({}, 1), "holds 1 bytes of data where its header promises 0"),
        (encode({"x\ud800": 1}), "not valid JSON"),
    ],
)
def test_every_fault_is_named_with_the_file(path: Path, content: bytes, reason: str) -> None:
    """Whoever has the file knows which one it is and what is wrong, in words that can be printed."""
    path.write_bytes(content)
    with pytest.raises(ModelBroken) as caught:
        read_header(path)
    assert reason in caught.value.message
    assert str(path) in caught.value.message
    assert caught.value.message.isprintable()
    assert caught.value.hint is not None


def test_a_repeated_key_is_refused(path: Path) -> None:
    """Some readers take the first and some the last, so a check of one would prove nothing about the other."""
    content = b'{"a":' + json.dumps(ENTRY).encode() + b',"a":' + json.dumps(ENTRY).encode() + b"}"
    path.write_bytes(struct.pack("<Q", len(content)) + content + bytes(24))
    with pytest.raises(ModelBroken, match="repeats a key"):
        read_header(path)


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "loop"])
def test_what_is_no_file_is_refused_and_not_waited_for(path: Path, kind: str) -> None:
    """A pipe that nobody writes to would hold up everything."""
    if kind == "folder":
        path.mkdir()
    if kind == "pipe":
        os.mkfifo(path)
    if kind == "loop":
        path.symlink_to(path.name)
    with pytest.raises(ModelBroken, match=r"model\.safetensors"):
        read_header(path)


def mutations(rng: random.Random, content: bytes) -> Iterator[bytes]:
    """The same bytes with a few of them changed, removed, doubled or moved."""
    words = (
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b",",
        b":",
        b"-",
        b"0",
        b"9",
        b"1e9",
        b"null",
        b"true",
        b"F16",
        b"\xff",
        b" ",
    )
    while True:
        mutated = bytearray(content)
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            place = rng.randrange(len(mutated) + 1)
            match rng.randrange(4):
                case 0:
                    mutated[place : place + 1] = bytes([rng.randrange(256)])
                case 1:
                    del mutated[place : place + rng.choice((1, 2, 8))]
                case 2:
                    mutated[place:place] = rng.choice(words)
                case 3:
                    start = rng.randrange(len(content))
                    mutated[place:place] = content[start : start + rng.randrange(1, 12)]
        yield bytes(mutated)


def test_a_hundred_thousand_damaged_headers_are_refused_or_right() -> None:
    """Nothing but ModelBroken comes out, and what is accepted covers the data exactly."""
    rng = random.Random(20)
    content = json.dumps(WHOLE, separators=(",", ":")).encode()
    accepted = 0
    source = mutations(rng, content)
    for _ in range(NUM_MUTATIONS):
        try:
            header = parse_header(next(source), DATA_BYTES, "it")
        except ModelBroken:
            continue
        accepted += 1
        places = sorted((tensor.begin, tensor.end) for tensor in header.tensors.values())
        assert sum(end - begin for begin, end in places) == DATA_BYTES
    assert 0 < accepted < NUM_MUTATIONS // 2


def test_what_is_accepted_here_is_accepted_by_the_reference_library() -> None:
    """The check is at least as strict as that of those who made the format."""
    library = pytest.importorskip("safetensors")
    rng = random.Random(7)
    content = json.dumps(WHOLE, separators=(",", ":")).encode()
    source = mutations(rng, content)
    compared = 0
    for _ in range(20_000):
        mutated = next(source)
        try:
            header = parse_header(mutated, DATA_BYTES, "it")
        except ModelBroken:
            continue
        found = dict(library.deserialize(struct.pack("<Q", len(mutated)) + mutated + bytes(DATA_BYTES)))
        assert found.keys() == header.tensors.keys()
        assert all(tuple(found[name]["shape"]) == tensor.shape for name, tensor in header.tensors.items())
        compared += 1
    assert compared > 200


def test_weight_files_are_those_that_mlx_lm_loads(tmp_path: Path) -> None:
    """model*.safetensors, and not the copies in other layouts beside them."""
    for name in ("model.safetensors", "consolidated.safetensors", "adapters.safetensors", "model.txt"):
        (tmp_path / name).write_bytes(b"")
    assert weight_files(tmp_path) == (tmp_path / "model.safetensors",)
    assert has_weights(tmp_path)


@pytest.mark.parametrize("how", ["index", "series", "link"])
def test_a_missing_shard_is_named(tmp_path: Path, how: str) -> None:
    """Told by the index, by the numbers in the names of the others, or by a link to nothing."""
    first, second = (f"model-0000{place}-of-00002.safetensors" for place in (1, 2))
    (tmp_path / first).write_bytes(b"")
    if how == "index":
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": first, "b": second}}))
    if how == "link":
        (tmp_path / second).symlink_to("../blobs/gone")
    with pytest.raises(ModelBroken, match=f"lacks 1 weight files: {second}"):
        weight_files(tmp_path)


def test_a_folder_without_weights_says_so(tmp_path: Path) -> None:
    """Also one that is not there at all."""
    assert not has_weights(tmp_path)
    with pytest.raises(ModelBroken, match=r"holds no model\*.safetensors"):
        weight_files(tmp_path)
    with pytest.raises(ModelBroken, match="cannot be read"):
        weight_files(tmp_path / "gone")


def test_an_absurd_series_costs_nothing(tmp_path: Path) -> None:
    """A name may promise 99999 others."""
    (tmp_path / "model-00001-of-99999.safetensors").write_bytes(b"")
    assert len(weight_files(tmp_path)) == 1


@pytest.mark.parametrize(
    "index",
    [
        {},
        {"weight_map": []},
        {"weight_map": {"a": 1}},
        {"weight_map": {"a": "../model.safetensors"}},
        {"weight_map": {"a": "/etc/passwd"}},
        {"weight_map": {"a": "model.bin"}},
        {"weight_map": {"a": "x\0.safetensors"}},
        {"weight_map": {"a": "a\\b.safetensors"}},
        {"weight_map": {"a": "x\ud800.safetensors"}},
    ],
)
def test_an_index_can_name_nothing_but_weight_files_beside_it(index: dict[str, Any]) -> None:
    """What a repository wrote is no path."""
    with pytest.raises(ModelBroken, match=r"index\.json"):
        indexed_files(index, Path("model.safetensors.index.json"))
