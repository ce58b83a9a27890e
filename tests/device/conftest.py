from collections.abc import Iterator
from pathlib import Path

import pytest

from mlxm.device.blas import open_blas


@pytest.fixture(scope="package", autouse=True)
def as_in_a_worker() -> Iterator[None]:
    """The BLAS is in its place, and no kernel is fused on the CPU, where each would take a compiler a second."""
    open_blas()
    import mlx.core as mx

    from mlxm.device.loader import use_plain_kernels

    use_plain_kernels()
    yield
    mx.enable_compile()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tiny models lie, for all tests."""
    return tmp_path_factory.mktemp("models")
