import asyncio
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlxm.errors import StoreError
from mlxm.pool import ledger
from mlxm.pool.ledger import LedgerFile, started_of

PROMISER = """
import asyncio, sys
from pathlib import Path
from mlxm.pool.ledger import LedgerFile
print(asyncio.run(LedgerFile(Path(sys.argv[1])).promise(int(sys.argv[2]), 100)), flush=True)
sys.stdin.read()
"""


def promising(home: Path, num_bytes: int) -> subprocess.Popen[str]:
    """A process that promises something, and stays."""
    command = [sys.executable, "-c", PROMISER, str(home), str(num_bytes)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def lines(home: Path) -> list[str]:
    """What is in the file."""
    return (home / "run" / "memory").read_text().splitlines()


def test_two_processes_share_one_budget_and_the_dead_hold_nothing(tmp_path: Path) -> None:
    """What one of them has promised is not there for the other, until it is gone, however it went."""

    async def promise(num_bytes: int) -> bool:
        return await mine.promise(num_bytes, 100)

    mine = LedgerFile(tmp_path)
    with promising(tmp_path, 70) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "True\n"
            assert asyncio.run(mine.others()) == 70
            assert [asyncio.run(promise(num_bytes)) for num_bytes in (31, 30, 40, 20)] == [False, True, False, True]
            assert len(lines(tmp_path)) == 2
        finally:
            other.kill()
    assert asyncio.run(mine.others()) == 0
    assert asyncio.run(promise(100))
    assert len(lines(tmp_path)) == 1
    asyncio.run(mine.withdraw())
    assert lines(tmp_path) == []
    assert (tmp_path / "run" / "memory").stat().st_mode & 0o777 == 0o600


def test_two_pools_of_one_process_are_two(tmp_path: Path) -> None:
    """Each has its own line."""

    async def test() -> None:
        one, two = LedgerFile(tmp_path), LedgerFile(tmp_path)
        assert await one.promise(60, 100)
        assert not await two.promise(60, 100)
        assert await two.promise(40, 100)
        assert (await one.others(), await two.others()) == (40, 60)

    asyncio.run(test())


def test_less_than_before_is_always_granted(tmp_path: Path) -> None:
    """Also when the budget has become smaller than that."""

    async def test() -> None:
        mine = LedgerFile(tmp_path)
        assert await mine.promise(60, 100)
        assert await mine.promise(50, 10)
        assert not await mine.promise(51, 10)

    asyncio.run(test())


@pytest.mark.parametrize("text", ["nonsense", "1 2 3", "x y z 5", "1 none abcd 70", "\x00\xff", "-1 0 a 5"])
def test_lines_of_nobody_count_as_nothing(tmp_path: Path, text: str) -> None:
    """Whatever has come into the file; they are gone with the next change."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "memory").write_text(f"{text}\n", encoding="latin-1")

    async def test() -> None:
        mine = LedgerFile(tmp_path)
        assert await mine.others() == 0
        assert await mine.promise(100, 100)

    asyncio.run(test())
    assert len(lines(tmp_path)) == 1


def test_a_lock_that_is_never_freed_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And does not hold everything up; freed in time, it is just waited for."""
    monkeypatch.setattr(ledger, "_PATIENCE_S", 0.05)

    async def test() -> None:
        mine = LedgerFile(tmp_path)
        await mine.promise(1, 100)
        descriptor = os.open(tmp_path / "run" / "memory", os.O_RDWR)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match="is locked by another process"):
            await mine.promise(2, 100)
        monkeypatch.setattr(ledger, "_PATIENCE_S", 10.0)
        waiting = asyncio.create_task(mine.promise(2, 100))
        await asyncio.sleep(0.02)
        os.close(descriptor)
        assert await waiting

    asyncio.run(test())


def test_a_ledger_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    """With its path."""
    (tmp_path / "run" / "memory").mkdir(parents=True)
    with pytest.raises(StoreError, match="run/memory"):
        asyncio.run(LedgerFile(tmp_path).promise(1, 100))


def test_who_has_ended_has_no_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A zombie neither; without /proc psutil is asked."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert started_of(child.pid) is None
    monkeypatch.setattr(ledger, "_PROC", Path("/nonexistent"))
    assert started_of(child.pid) is None
    child.wait()
    assert started_of(child.pid) is None
    assert started_of(os.getpid()) == started_of(os.getpid()) is not None
