import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mlxm.device import blas
from mlxm.device.blas import Blas, open_blas
from mlxm.errors import ConfigInvalid

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="mlx brings a fast BLAS of its own elsewhere")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Makes the loading of libraries a record: those named exist, all others do not."""

    def pretend(*existing: str) -> list[str]:
        asked: list[str] = []

        def load(path: str, mode: int) -> None:
            asked.append(path)
            assert mode == ctypes.RTLD_GLOBAL
            if not path.endswith(existing):
                raise OSError(path)

        monkeypatch.setattr("mlxm.device.blas.ctypes.CDLL", load)
        monkeypatch.setattr("mlxm.device.blas.sys.platform", "linux")
        return asked

    return pretend


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages with every library that is looked for."""
    folder = tmp_path / "site-packages"
    for place in ("opencv_python.libs/libopenblasp-r0-1.so", "libmkl_rt.so.2", "mlx_cpu.libs/libblas-1.so.3"):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).touch()
    monkeypatch.setattr("mlxm.device.blas.sysconfig.get_path", lambda _: str(folder))
    monkeypatch.setattr("mlxm.device.blas.sys.prefix", str(tmp_path))
    return folder


def test_the_system_openblas_comes_first(opened: Callable[..., list[str]], packages: Path) -> None:
    """Nothing else is touched once one is found."""
    asked = opened("libopenblas.so.0", ".so.2")
    assert Blas("OpenBLAS", "libopenblas.so.0") == open_blas()
    assert asked == ["libopenblas.so.0"]
    assert packages.is_dir()


def test_mkl_comes_before_the_copy_of_another_package(opened: Callable[..., list[str]], packages: Path) -> None:
    """The copy that opencv-python keeps for itself is the last resort."""
    opened(".so.2", "r0-1.so")
    assert Blas("MKL", str(packages / "libmkl_rt.so.2")) == open_blas()
    opened("r0-1.so")
    last = packages / "opencv_python.libs/libopenblasp-r0-1.so"
    assert Blas("OpenBLAS (opencv-python)", str(last)) == open_blas()


@pytest.mark.usefixtures("packages")
def test_without_any_the_reference_one_is_named(opened: Callable[..., list[str]]) -> None:
    """So that it can be warned of."""
    opened()
    assert Blas("netlib reference", None, is_reference=True) == open_blas()


def test_a_build_that_bundles_no_reference_blas_is_trusted(opened: Callable[..., list[str]], packages: Path) -> None:
    """Whoever built mlx themselves linked it to what they have."""
    opened()
    (packages / "mlx_cpu.libs/libblas-1.so.3").unlink()
    assert Blas("mlx's own", None) == open_blas()


@pytest.mark.usefixtures("packages")
def test_none_leaves_everything_as_it_is(opened: Callable[..., list[str]]) -> None:
    """No library is loaded."""
    asked = opened(".so.0")
    assert Blas("netlib reference", None, is_reference=True) == open_blas("none")
    assert asked == []


def test_a_named_library_is_taken_or_refused(opened: Callable[..., list[str]]) -> None:
    """Nothing else is tried in its place."""
    asked = opened("/opt/libblis.so")
    assert Blas("libblis.so", "/opt/libblis.so") == open_blas("/opt/libblis.so")
    with pytest.raises(ConfigInvalid, match=r"/opt/missing\.so cannot be loaded"):
        open_blas("/opt/missing.so")
    assert asked == ["/opt/libblis.so", "/opt/missing.so"]


def test_other_systems_need_no_help(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accelerate is there already."""
    monkeypatch.setattr(blas.sys, "platform", "darwin")
    assert open_blas("/whatever.so") is None


@linux_only
def test_the_number_of_threads_reaches_the_library() -> None:
    """The parameter wins; without it, the environment is honoured."""
    program = (
        "import ctypes, sys; from mlxm.device.blas import open_blas;"
        "blas = open_blas(num_threads=int(sys.argv[1]) if sys.argv[1:] else None);"
        "library = ctypes.CDLL(blas.path);"
        "names = ('openblas_get_num_threads', 'scipy_openblas_get_num_threads64_', 'MKL_Get_Max_Threads');"
        "name = next(name for name in names if hasattr(library, name));"
        "print(getattr(library, name)())"
    )
    environ = os.environ | {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

    def num_threads(*arguments: str) -> int:
        command = [sys.executable, "-c", program, *arguments]
        return int(subprocess.run(command, check=True, capture_output=True, env=environ).stdout)

    assert num_threads() == 1
    if os.cpu_count() != 1:
        assert num_threads("2") == 2


@linux_only
def test_mlx_becomes_many_times_faster() -> None:
    """The library really answers mlx's matrix products."""

    def gflops(choice: str) -> float:
        command = [sys.executable, "-m", "mlxm.worker", "--probe", "--blas", choice, "--blas-threads", "1"]
        report = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        return float(report["blas"]["gflops"])

    assert gflops("auto") > 3 * gflops("none")
