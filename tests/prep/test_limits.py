from __future__ import annotations

import resource
import subprocess
import sys
import threading
from pathlib import Path
from typing import NoReturn

import pytest

from mlxm.prep.limits import EXIT_OVER_MEMORY, Footprint, MemoryGuard, footprint

MIB = 1024 * 1024


def test_the_footprint_is_read_from_proc(tmp_path: Path) -> None:
    """The second field is the resident size, the sixth the data, both in pages."""
    statm = tmp_path / "statm"
    statm.write_text("900 20 3 4 0 70 0\n")
    page = resource.getpagesize()
    assert footprint(statm) == Footprint(20 * page, 70 * page)


def test_without_proc_the_peak_stands_for_the_resident_size(tmp_path: Path) -> None:
    """A kernel such as that of macOS counts no data, and its peak is all that can be had cheaply."""
    found = footprint(tmp_path / "absent")
    assert found.data_bytes is None
    assert 10 * MIB < found.resident_bytes < 100_000 * MIB


def test_a_process_that_grows_too_far_is_ended_with_a_last_word(capfd: pytest.CaptureFixture[str]) -> None:
    """Only growth inside the block counts, and the exit code says why."""
    size = 1000
    codes: list[int] = []
    left = threading.Event()

    def leave(code: int) -> NoReturn:
        codes.append(code)
        left.set()
        while True:  # a process that has been left does nothing more
            threading.Event().wait()

    guard = MemoryGuard(measure=lambda: Footprint(size, None), leave=leave)
    with guard.watched(100):
        size = 1100
        assert not left.wait(0.1)
        size = 1101
        assert left.wait(10)
    assert codes == [EXIT_OVER_MEMORY]
    assert "more memory than it may" in capfd.readouterr().err


def test_growth_outside_a_job_is_nobodys_business() -> None:
    """An idle process is not even looked at."""
    looks: list[int] = []

    def measure() -> Footprint:
        looks.append(1)
        return Footprint(len(looks) * 1000, None)

    guard = MemoryGuard(measure=measure)
    with guard.watched(10**9):
        pass
    after = len(looks)
    assert not threading.Event().wait(0.1)
    assert len(looks) <= after + 1


def test_a_limit_is_left_alone_where_the_kernel_does_not_count() -> None:
    """Without a size of the data there is no limit to compute."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with MemoryGuard(measure=lambda: Footprint(1, None)).refused(1):
        assert before == resource.getrlimit(resource.RLIMIT_DATA)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel refuses data on Linux only")
def test_the_kernel_refuses_what_goes_beyond_and_nothing_afterwards() -> None:
    """The limit is lifted with the end of the block, however it ends, and never raised above what was set before."""
    script = (
        "import resource\n"
        "from mlxm.prep.limits import MemoryGuard, footprint\n"
        "guard, mib = MemoryGuard(), 1024 * 1024\n"
        "before = footprint().data_bytes + 900 * mib\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (before, resource.RLIM_INFINITY))\n"
        "try:\n"
        "    with guard.refused(100 * mib):\n"
        "        'a' * (200 * mib)\n"
        "except MemoryError:\n"
        "    print('refused')\n"
        "print(len('a' * (200 * mib)) // mib)\n"
        "with guard.refused(2000 * mib):\n"
        "    print(resource.getrlimit(resource.RLIMIT_DATA)[0] == before)\n"
    )
    found = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60)
    assert found.stdout.split() == ["refused", "200", "True"]
