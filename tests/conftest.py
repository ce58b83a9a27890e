import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlxm.tiny import build_builtin

SOAK = os.environ.get("MLXM_SOAK", "short")


@pytest.fixture(scope="session", autouse=True)
def quiet_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep out what this machine's owner has set, and keep every test off the network."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("MLXM_")]:
            patch.delenv(name)
        for name in ("HF_HOME", "HF_HUB_CACHE", "HF_TOKEN", "NO_COLOR", "FORCE_COLOR"):
            patch.delenv(name, raising=False)
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("huggingface")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(autouse=True)
def mlxm_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own for each test: a folder that does not exist yet."""
    home = tmp_path / "mlxm-home"
    monkeypatch.setenv("MLXM_HOME", str(home))
    return home


@pytest.fixture(scope="session")
def long_soak() -> bool:
    """Whether soaks run in their long form: MLXM_SOAK=long."""
    return SOAK == "long"


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model's folder; not to be changed."""
    return build_builtin(tmp_path_factory.mktemp("builtin"))
