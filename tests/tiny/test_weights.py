"""Random numbers that are the same everywhere, and the file they are written to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from mlxm.tiny.weights import normal, write_safetensors


def test_the_numbers_are_those_of_every_other_machine() -> None:
    """Values recorded once: another platform or NumPy that gives others would break caches and comparisons."""
    expected = np.array([0.042867835611104965, 1.5912635326385498, -1.3945260047912598], dtype=np.float32)
    assert normal("layer.weight", (3,), seed=1).tolist() == expected.tolist()


def test_seed_and_name_each_change_the_numbers() -> None:
    """Two arrays of one model, and two models of different seeds, have nothing in common."""
    base = normal("a", (64,), seed=0)
    assert not np.array_equal(base, normal("b", (64,), seed=0))
    assert not np.array_equal(base, normal("a", (64,), seed=1))
    assert np.array_equal(base, normal("a", (64,), seed=0))


def test_the_numbers_look_normal() -> None:
    """Mean, spread and shape are near those of the standard normal distribution."""
    values = normal("w", (400, 500), seed=3)
    assert values.dtype == np.float32
    assert abs(float(values.mean())) < 0.01
    assert abs(float(values.std()) - 1) < 0.01
    assert 0.66 < float((np.abs(values) < 1).mean()) < 0.70


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint32", "uint8", "int32"])
def test_arrays_come_back_from_the_file(tmp_path: Path, dtype: str) -> None:
    """The reference reader finds every array with its type, shape and values, scalars and transposed ones included."""
    arrays = {
        "z.weight": np.arange(12).reshape(3, 4).astype(dtype).T,
        "a.scale": np.array(3, dtype=dtype),
        "m.empty": np.zeros((0, 4), dtype=dtype),
    }
    write_safetensors(tmp_path / "model.safetensors", arrays)
    with safe_open(tmp_path / "model.safetensors", framework="np") as file:
        assert file.metadata() == {"format": "mlx"}
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_the_data_begins_at_a_multiple_of_eight(tmp_path: Path) -> None:
    """Readers that map the file find aligned arrays, whatever the header's length."""
    for length in range(1, 9):
        path = tmp_path / f"{length}.safetensors"
        write_safetensors(path, {"n" * length: np.ones(2, dtype=np.float32)})
        assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0
