from __future__ import annotations

from pathlib import Path

import pytest

from mlxm.catalog.local import LocalModels, Roots


@pytest.fixture
def roots(tmp_path: Path, mlxm_home: Path) -> Roots:
    """Empty places for models."""
    return Roots(
        home=mlxm_home, hub_cache=tmp_path / "hub", lmstudio=tmp_path / "lmstudio", imported=(tmp_path / "imported",)
    )


@pytest.fixture
def models(roots: Roots) -> LocalModels:
    """The models under the roots."""
    for folder in (roots.hub_cache, roots.lmstudio, *roots.imported):
        assert folder is not None
        folder.mkdir()
    return LocalModels(roots)
