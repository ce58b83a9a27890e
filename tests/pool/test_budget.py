import ctypes
import json
import shutil
import struct
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxm.pool import budget, pressure
from mlxm.pool.budget import Estimator, Need, value_bits_here
from mlxm.pool.limit import GB, MemoryLimit
from mlxm.pool.pressure import level_of, macos_level, probe_memory

CONFIG = {
    "model_type": "llama",
    "hidden_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 1000,
    "max_position_embeddings": 16384,
}
TOKEN_BYTES = 4 * 2 * 4 * 64 * 2
"""Layers, keys and values, heads, their size, and 16 bits."""


def write_model(folder: Path, weights_bytes: int, **config: Any) -> Path:
    """A model's files, as far as an estimate reads them."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    header = json.dumps(
        {"w": {"dtype": "F16", "shape": [weights_bytes // 2], "data_offsets": [0, weights_bytes]}}
    ).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + weights_bytes)
    return folder


@pytest.mark.parametrize(
    ("limit", "total_gb", "budget_gb"),
    [
        (MemoryLimit(), 32, 25.6),
        (MemoryLimit(), 16, 12),
        (MemoryLimit(percent=100.0), 32, 25.6),
        (MemoryLimit(percent=100.0), 64, 56),
        (MemoryLimit(percent=100.0), 128, 120),
        (MemoryLimit(percent=50.0), 64, 32),
        (MemoryLimit(percent=100.0), 6, 3),
        (MemoryLimit(percent=None, num_bytes=48 * GB), 64, 48),
        (MemoryLimit(percent=None, num_bytes=64 * GB), 64, 56),
        (MemoryLimit(percent=None, num_bytes=64 * GB, reserve_bytes=2 * GB), 64, 62),
    ],
)
def test_the_system_keeps_its_reserve(limit: MemoryLimit, total_gb: int, budget_gb: float) -> None:
    """A fifth, at least 4 GB and at most 8, and half of a machine that is smaller than that allows."""
    assert limit.of(total_gb * GB) == pytest.approx(budget_gb * GB)


@given(percent=st.floats(1, 100), total_gb=st.integers(4, 1024))
def test_percent_and_bytes_turn_into_one_another(percent: float, total_gb: int) -> None:
    """There and back is the same within a hundredth, once what is too much has been cut."""
    total = total_gb * GB
    first = MemoryLimit(percent=percent).of(total)
    as_bytes = MemoryLimit(percent=None, num_bytes=first)
    assert as_bytes.of(total) == first
    assert MemoryLimit(percent=as_bytes.as_percent(total)).of(total) == pytest.approx(first, rel=0.01)


def test_an_estimate_counts_weights_work_and_blocks(tmp_path: Path) -> None:
    """As the files have them; at least 4096 tokens, usually 32768, at most what 16 rows can use."""
    need = Estimator()(write_model(tmp_path, 500_000_000), None)
    assert need.cache_bytes is not None
    assert need.fixed_bytes == 500_000_000 + need.cache_bytes
    assert 0.02 < need.cache_bytes / need.fixed_bytes < 0.5
    tokens = [kv / TOKEN_BYTES for kv in (need.least_kv_bytes, need.usual_kv_bytes, need.most_kv_bytes)]
    assert tokens == [4096 + 64, 32768 + 64, 65536 + 64]
    wide = Estimator(value_bits=32)(tmp_path, None)
    assert wide.most_kv_bytes == 2 * need.most_kv_bytes


def test_an_estimate_for_a_context_has_that_and_no_more(tmp_path: Path) -> None:
    """Somebody wants room for so many tokens."""
    need = Estimator()(write_model(tmp_path, 1_000_000), 1000)
    assert need.least_kv_bytes == need.most_kv_bytes == (1024 + 64) * TOKEN_BYTES
    assert need.least_bytes == need.usual_bytes


def test_what_keeps_states_gets_room_for_copies(tmp_path: Path) -> None:
    """States do not grow with the context, but with the rows."""
    config = {"model_type": "mamba", "state_size": 16, "intermediate_size": 2048, "conv_kernel": 4}
    need = Estimator()(write_model(tmp_path, 1_000_000, **config), None)
    assert 0 < need.least_kv_bytes < need.usual_kv_bytes < need.most_kv_bytes


def test_files_that_say_nothing_need_nothing_and_unknown_caches_much(tmp_path: Path) -> None:
    """The worker will say what is wrong with them."""
    assert Estimator()(tmp_path, None) == Need(fixed_bytes=0)
    folder = write_model(tmp_path / "a", 1_000_000, model_type="rwkv7")
    assert Estimator()(folder, None).least_kv_bytes > 100_000_000
    (folder / "model.safetensors").unlink()
    (folder / "config.json").write_text("{}")
    assert Estimator()(folder, None).fixed_bytes < GB
    shutil.rmtree(folder)


def test_a_share_leaves_something_to_others() -> None:
    """At most half of what the weights leave, unless one conversation needs more; never more than is free."""
    need = Need(fixed_bytes=20, least_kv_bytes=5, usual_kv_bytes=10, most_kv_bytes=1000)
    assert need.share_of(free_bytes=100, budget_bytes=100) == 60
    assert need.share_of(free_bytes=40, budget_bytes=100) == 40
    assert need.share_of(free_bytes=25, budget_bytes=30) == 25
    assert need.share_of(free_bytes=100, budget_bytes=36) == 30


def test_values_are_wide_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where MLX is the one for a CPU."""

    def missing(_name: str) -> str:
        raise PackageNotFoundError

    monkeypatch.setattr(budget, "version", lambda _name: "1")
    assert value_bits_here() == 32
    monkeypatch.setattr(budget, "version", missing)
    assert value_bits_here() == 16


def test_levels_follow_what_is_left() -> None:
    """A twentieth, a fortieth."""
    assert [level_of(left, 1000) for left in (500, 51, 49, 26, 24)] == [
        *("normal", "normal", "warning", "warning", "critical"),
    ]


def test_this_machine_can_be_asked() -> None:
    """It has memory, and some is left."""
    found = probe_memory()
    assert 0 < found.available_bytes <= found.total_bytes


@pytest.mark.parametrize(
    ("value", "rc", "level"), [(1, 0, "normal"), (2, 0, "warning"), (4, 0, "critical"), (9, 0, None), (4, -1, None)]
)
def test_macos_judges_for_itself(monkeypatch: pytest.MonkeyPatch, value: int, rc: int, level: str | None) -> None:
    """By its own levels; where it has no verdict what is available decides."""

    class Library:
        @staticmethod
        def sysctlbyname(_name: bytes, place: Any, *_: Any) -> int:
            ctypes.cast(place, ctypes.POINTER(ctypes.c_int))[0] = value
            return rc

    monkeypatch.setattr(pressure.ctypes, "CDLL", lambda _: Library)
    assert macos_level() == level
    monkeypatch.setattr(pressure.sys, "platform", "darwin")
    if level is not None:
        assert probe_memory().level == level


def test_elsewhere_there_is_no_such_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """The C library does not know the call."""
    monkeypatch.setattr(pressure.ctypes, "CDLL", lambda _: object())
    assert macos_level() is None
