from collections.abc import Iterator

import mlx.core as mx
import pytest


@pytest.fixture(scope="module", autouse=True)
def plain_kernels() -> Iterator[None]:
    """Without fused kernels, each of which takes a compiler a second."""
    mx.disable_compile()
    yield
    mx.enable_compile()
