from __future__ import annotations

from pathlib import Path

import pytest

CHILDREN = Path(__file__).parent / "children"


@pytest.fixture
def children() -> Path:
    """The folder of the programs that tests start, and some of them kill."""
    return CHILDREN
