from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CHILDREN = Path(__file__).parent / "children"


@pytest.fixture
def children() -> Path:
    """The folder of the programs that tests start, and some of them kill."""
    return CHILDREN


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
