from __future__ import annotations

import os
import random
import select
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

KILLS = 100
LONGEST_LIFE_S = 0.04
PATIENCE_S = 30


def read_for(descriptor: int, life_s: float) -> bytes:
    """What comes within `life_s` of the first sign of life."""
    assert select.select([descriptor], [], [], PATIENCE_S)[0], "the child never wrote"
    said = b""
    deadline = time.monotonic() + life_s
    while (left_s := deadline - time.monotonic()) > 0:
        if select.select([descriptor], [], [], left_s)[0]:
            said += os.read(descriptor, 1 << 16)
    return said


def acknowledged_until_killed(
    path: Path, program: Path, environment: dict[str, str], first: int, life_s: float
) -> list[int]:
    """Run a writing child, kill it `life_s` after its first answer, and return all the numbers it said."""
    command = [sys.executable, program, path, str(first)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as child:
        assert child.stdout is not None
        try:
            said = read_for(child.stdout.fileno(), life_s)
        finally:
            child.kill()
        said += child.stdout.read()
    assert child.returncode == -9
    whole, _, _half = said.rpartition(b"\n")
    return [int(number) for number in whole.split()]


def test_no_answered_write_is_lost_when_the_process_is_killed_a_hundred_times(
    tmp_path: Path, children: Path, unmeasured: dict[str, str]
) -> None:
    """Killed with -9 at random moments while eight tasks write; each next child opens what the last one left."""
    path = tmp_path / "mlxm.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE kept (number INTEGER PRIMARY KEY)")
    chance = random.Random(20)
    answered: set[int] = set()
    for _ in range(KILLS):
        first = max(answered, default=0) + 1000
        life_s = chance.uniform(0, LONGEST_LIFE_S)
        answered.update(acknowledged_until_killed(path, children / "keep_writing.py", unmeasured, first, life_s))
    assert len(answered) > KILLS
    with closing(sqlite3.connect(path)) as connection:
        kept = {number for (number,) in connection.execute("SELECT number FROM kept")}
        assert answered - kept == set()
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
