from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from mlxm.catalog.hub_files import RemoteFile
from mlxm.downloads.fetch import PARENT_GONE
from mlxm.downloads.frames import Fetch
from mlxm.frames import Shutdown, encode
from mlxm.testing.fake_hub import FakeHub, Mishap


@pytest.fixture
def run_fetch() -> Callable[[bytes | None], int]:
    """Start the process, say this or nothing, and return how it ended."""

    def run(said: bytes | None) -> int:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "mlxm.downloads.fetch", "--fd", str(theirs.fileno())]
        with ours, subprocess.Popen(command, pass_fds=(theirs.fileno(),)) as process:
            theirs.close()
            if said is not None:
                ours.sendall(said)
            ours.shutdown(socket.SHUT_WR)
            return process.wait(30)

    return run


def test_a_process_without_an_order_leaves(run_fetch: Callable[[bytes | None], int]) -> None:
    """Whether it was told to, or its parent went without a word."""
    assert run_fetch(encode(Shutdown())) == 0
    assert run_fetch(None) == 0


def test_a_process_whose_parent_dies_ends_at_once(hub: FakeHub, tmp_path: Path) -> None:
    """In the middle of a file."""
    commit = hub.add("a/b", {"model.safetensors": b"x" * 1000}, lfs=())
    gate = threading.Event()
    hub.break_with(Mishap("*/resolve/*", method="GET", hold=gate))
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "mlxm.downloads.fetch", "--fd", str(theirs.fileno())]
    with subprocess.Popen(command, pass_fds=(theirs.fileno(),)) as process:
        theirs.close()
        order = Fetch(
            name="a/b",
            revision="main",
            commit=commit,
            cache=str(tmp_path),
            endpoint=hub.url,
            files=(RemoteFile(path="model.safetensors", size_bytes=1000),),
            margin_bytes=0,
            num_parallel=1,
        )
        ours.sendall(encode(order))
        assert hub.wait_for("*/resolve/*", method="GET")
        ours.close()
        assert process.wait(5) == PARENT_GONE
    gate.set()
