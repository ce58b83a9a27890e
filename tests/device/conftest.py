import pytest

from mlxm.device.blas import open_blas


@pytest.fixture(scope="session", autouse=True)
def fast_blas() -> None:
    """As in a worker: the BLAS is in its place before anything imports mlx."""
    open_blas()
