from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mlxm.testing.fake_hub import FakeHub


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    """A hub that holds nothing yet, with large files at a second address."""
    with FakeHub(cdn=True, tokens={"good": ("org/gated",), "other": ()}) as running:
        yield running


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache folder that does not exist yet."""
    return tmp_path / "hub"
