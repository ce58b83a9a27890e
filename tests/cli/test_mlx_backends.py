import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import Distribution, distributions
from pathlib import Path

import pytest

from mlxm.cli.mlx_backends import check_mlx_backends, find_mlx_backends

Install = Callable[..., list[Distribution]]


@pytest.fixture
def install(tmp_path: Path) -> Install:
    """Write the metadata that pip leaves behind, and read it back."""

    def write(*names: str) -> list[Distribution]:
        for name in names:
            folder = tmp_path / f"{name.replace('-', '_')}-0.32.4.dist-info"
            folder.mkdir()
            (folder / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: 0.32.4\n")
        return list(distributions(path=[str(tmp_path)]))

    return write


def test_this_environment_has_exactly_one_backend() -> None:
    """What pip made of our own dependencies is sound."""
    assert check_mlx_backends(find_mlx_backends()).status == "ok"


@pytest.mark.parametrize("backend", ["mlx-cpu", "mlx-metal", "mlx-cuda-12", "mlx-cuda-13"])
def test_one_backend_is_well(install: Install, backend: str) -> None:
    """Each backend alone is fine, whatever else of MLX is installed."""
    check = check_mlx_backends(find_mlx_backends(install("mlx", "mlx-lm", "mlx-vlm", backend)))
    assert (check.status, check.detail) == ("ok", backend)


def test_two_backends_are_reported_with_the_way_out(install: Install) -> None:
    """The CPU library beside the CUDA one is a fault, and both are named."""
    check = check_mlx_backends(find_mlx_backends(install("mlx", "mlx_cpu", "mlx-cuda-13")))
    assert check.status == "fail"
    assert check.detail == "mlx-cpu and mlx-cuda-13 overwrite each other's library"
    assert check.fix is not None
    assert check.fix.startswith("pip uninstall -y mlx-cpu mlx-cuda-13 && pip install mlx-cuda-13")


def test_no_backend_is_reported(install: Install) -> None:
    """MLX without a library cannot even be imported, so doctor says what to install."""
    assert check_mlx_backends(find_mlx_backends(install("mlx", "mlx-lm"))).status == "fail"


def test_looking_for_backends_does_not_load_mlx() -> None:
    """A broken MLX must not keep doctor from saying what is broken."""
    program = "import sys, mlxm.cli.mlx_backends as b; b.find_mlx_backends(); print('mlx' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
