from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

from mlxm.downloads.lock import hold_alone, is_free

HOLD = """
import sys
from pathlib import Path
from mlxm.downloads.lock import hold_alone
with hold_alone(Path(sys.argv[1]), lambda pid: print("waits for", pid, flush=True)):
    print("has it", flush=True)
    sys.stdin.readline()
"""


def refuse(_: int | None) -> None:
    """For those who must not wait."""
    raise AssertionError


def test_one_process_holds_it_and_the_next_waits(tmp_path: Path) -> None:
    """It is told for whom, and gets it when that one dies."""
    path = tmp_path / "locks" / "a.lock"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "has it\n"
        assert not is_free(path)
        waited_for: list[int | None] = []

        def wait(pid: int | None) -> None:
            waited_for.append(pid)
            holder.kill()

        with hold_alone(path, wait):
            assert path.read_text() == str(os.getpid())
    assert waited_for == [holder.pid]
    assert is_free(path)


def test_a_lock_that_was_removed_meanwhile_is_taken_anew(tmp_path: Path) -> None:
    """Two holders of two files of the same name would not see each other."""
    path = tmp_path / "a.lock"
    with hold_alone(path, refuse):
        got_it = threading.Event()

        def wait_for_it() -> None:
            with hold_alone(path, lambda _: path.unlink()):
                assert path.exists()
                got_it.set()

        waiting = threading.Thread(target=wait_for_it)
        waiting.start()
        while path.exists():
            assert not got_it.is_set()
    waiting.join(10)
    assert got_it.is_set()


def test_a_lock_that_nobody_ever_took_is_free(tmp_path: Path) -> None:
    """Looking makes no file."""
    assert is_free(tmp_path / "a.lock")
    assert list(tmp_path.iterdir()) == []


def test_a_holder_without_a_name_is_unknown(tmp_path: Path) -> None:
    """It has the lock, and has not said who it is."""
    path = tmp_path / "a.lock"
    names: list[int | None] = []
    with hold_alone(path, refuse):
        path.write_bytes(b"")

        def wait(pid: int | None) -> None:
            names.append(pid)
            raise InterruptedError

        try:
            with hold_alone(path, wait):
                raise AssertionError
        except InterruptedError:
            assert names == [None]
