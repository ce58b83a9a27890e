import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from mlxm.tiny import build_builtin

SOAK = os.environ.get("MLXM_SOAK", "short")


@pytest.fixture(scope="session", autouse=True)
def heeded_interrupts() -> None:
    """Let Ctrl-C reach child processes, which inherit that it is ignored when the tests run in the background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def quiet_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep out what this machine's owner has set, and keep every test off the network."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("MLXM_")]:
            patch.delenv(name)
        for name in ("HF_HOME", "HF_HUB_CACHE", "HF_TOKEN", "NO_COLOR", "FORCE_COLOR"):
            patch.delenv(name, raising=False)
        huggingface = tmp_path_factory.mktemp("huggingface")
        patch.setenv("HF_HOME", str(huggingface))
        # It reads its environment when it is imported, which may have been before.
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(huggingface / "hub"))
        patch.setattr("mlxm.shelf.LM_STUDIO", huggingface / "no-lm-studio")
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


def _is_gone(pid: int, within_s: float) -> bool:
    if hasattr(os, "pidfd_open"):
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            return True
        try:
            return bool(select.select([handle], [], [], within_s)[0])  # also when nobody has collected it
        finally:
            os.close(handle)
    deadline = time.monotonic() + within_s
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@pytest.fixture
def is_gone() -> Callable[[int, float], bool]:
    """Whether a process ends within some seconds."""
    return _is_gone


@pytest.fixture
def unmeasured() -> dict[str, str]:
    """The environment for programs that are killed: they can report no coverage, and measuring slows their start."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COV")}


@pytest.fixture(scope="session")
def mount_namespace() -> list[str]:
    """The command prefix under which mounts are allowed and vanish with the process; skips where nothing allows it."""
    for prefix in (["unshare", "--mount"], ["unshare", "--map-root-user", "--mount"]):
        probe = [*prefix, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
        if shutil.which("unshare") and subprocess.run(probe, capture_output=True, check=False).returncode == 0:
            return prefix
    pytest.skip("this system lets nobody here mount anything")
