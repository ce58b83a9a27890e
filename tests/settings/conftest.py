from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home that nobody has made yet."""
    return tmp_path / "home"


@pytest.fixture
def config(home: Path) -> Path:
    """The path of config.toml in a home that exists."""
    home.mkdir(mode=0o700)
    return home / "config.toml"
