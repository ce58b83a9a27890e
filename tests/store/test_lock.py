from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import LOCK_SH, flock
from pathlib import Path

import pytest

from mlxm.errors import AlreadyRunning, StoreError
from mlxm.store import lock
from mlxm.store.lock import HomeLock, HomeStatus, home_status

PATIENCE_S = 20


@contextmanager
def started(program: Path, home: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A child that holds the lock of `home`, or tells why not, and the line that it said."""
    command = [sys.executable, program, home]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            yield child, child.stdout.readline().strip()
            child.stdin.close()
            child.wait(PATIENCE_S)
        finally:
            child.kill()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home that is not there yet."""
    return tmp_path / "home"


@pytest.fixture
def program(children: Path) -> Path:
    """The program that takes the lock."""
    return children / "hold_lock.py"


def test_home_and_run_folder_are_made_for_the_owner_alone(home: Path) -> None:
    """Whatever the umask says."""
    before = os.umask(0o277)
    try:
        with HomeLock(home):
            modes = [stat.S_IMODE(path.stat().st_mode) for path in (home, home / "run")]
    finally:
        os.umask(before)
    assert modes == [0o700, 0o700]


def test_a_second_process_is_told_who_holds_the_home(home: Path, program: Path) -> None:
    """It fails at once, naming the first one's pid; when that has gone, a third gets the home."""
    with started(program, home) as (first, said):
        assert said == "held"
        with started(program, home) as (_second, refused):
            assert refused == f"Another server (pid {first.pid}) uses {home} already."
        assert home_status(home) == HomeStatus(held=True, pid=first.pid)
        assert first.stdin is not None
        first.stdin.close()
        assert first.wait(PATIENCE_S) == 0
    assert home_status(home) == HomeStatus(held=False)
    with started(program, home) as (_third, said):
        assert said == "held"


def test_the_lock_dies_with_its_holder(home: Path, program: Path) -> None:
    """Killed with -9 the first leaves its pid in the file, and still the third start works."""
    with started(program, home) as (first, _said):
        with started(program, home) as (_second, refused):
            assert f"pid {first.pid}" in refused
        first.kill()
        assert first.wait(PATIENCE_S) == -9
    assert (home / "run" / "server.lock").read_text() == f"{first.pid}\n"
    assert home_status(home) == HomeStatus(held=False)
    with started(program, home) as (third, said):
        assert said == "held"
        assert home_status(home) == HomeStatus(held=True, pid=third.pid)


def test_one_process_does_not_take_the_lock_twice(home: Path) -> None:
    """A lock belongs to its HomeLock, not to the process."""
    with HomeLock(home), pytest.raises(AlreadyRunning, match=f"pid {os.getpid()}") as caught:
        HomeLock(home).acquire()
    assert caught.value.hint == f"Stop it with: kill {os.getpid()}, or start this one with another MLXM_HOME."


def test_releasing_twice_is_harmless(home: Path) -> None:
    """And so is releasing what was never taken."""
    held = HomeLock(home)
    held.release()
    held.acquire()
    held.release()
    held.release()
    assert home_status(home) == HomeStatus(held=False)


def test_a_home_without_a_lock_file_is_free_and_stays_untouched(home: Path) -> None:
    """Looking makes nothing."""
    assert home_status(home) == HomeStatus(held=False)
    assert not home.exists()


def test_a_glance_at_the_lock_does_not_stop_a_start(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks holds it for an instant while the file names one who is dead: the start waits that long."""
    with HomeLock(home):
        pass
    path = home / "run" / "server.lock"
    with subprocess.Popen(["true"]) as dead:
        dead.wait(PATIENCE_S)
    path.write_text(f"{dead.pid}\n")
    glance = os.open(path, os.O_RDONLY)
    flock(glance, LOCK_SH)
    monkeypatch.setattr(lock.time, "sleep", lambda _s: os.close(glance))
    with HomeLock(home):
        assert path.read_text() == f"{os.getpid()}\n"


def test_a_holder_without_a_name_is_believed_after_a_second(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that says nothing useful does not hide that the lock is taken."""
    with HomeLock(home):
        (home / "run" / "server.lock").write_text("what?")
        passed = iter(range(100))
        monkeypatch.setattr(lock.time, "monotonic", lambda: next(passed))
        monkeypatch.setattr(lock.time, "sleep", lambda _s: None)
        with pytest.raises(AlreadyRunning, match="Another process uses"):
            HomeLock(home).acquire()
        assert home_status(home) == HomeStatus(held=True)


def test_a_holder_of_another_user_counts_as_alive(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system refuses to signal it, which proves that it is there."""

    def refuse(_pid: int, _signal: int) -> None:
        raise PermissionError

    with HomeLock(home):
        monkeypatch.setattr(lock.os, "kill", refuse)
        monkeypatch.setattr(lock.time, "sleep", lambda _s: pytest.fail("it waited for a living holder"))
        with pytest.raises(AlreadyRunning):
            HomeLock(home).acquire()


def test_a_lock_file_that_is_a_symlink_is_refused(home: Path, tmp_path: Path) -> None:
    """The pid is written into no file that somebody else chose."""
    (home / "run").mkdir(parents=True)
    (home / "run" / "server.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=r"server\.lock could not be used"):
        HomeLock(home).acquire()
    assert not (tmp_path / "elsewhere").exists()
