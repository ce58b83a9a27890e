"""Migrate database after database, killed with -9 before the first statement, the second, the third, until one lives.

Each try is a fork, so that the slow import is paid once.
"""

import itertools
import os
import signal
import sqlite3
import sys
from pathlib import Path

import sqlite_utils

from mlxm.store.migrations import MIGRATIONS, upgrade


def migrate(path: Path, deadly: int, already: int) -> None:
    """Upgrade from version `already`, dying before statement number `deadly`."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    upgrade(connection, MIGRATIONS[:already])
    count = itertools.count()

    def fail(_statement: str) -> None:
        if next(count) == deadly:
            os.kill(os.getpid(), signal.SIGKILL)

    connection.set_trace_callback(fail)
    upgrade(connection)
    os._exit(0)


def main() -> None:
    """Leave one database per statement in the folder named first, and print how many."""
    folder, already = Path(sys.argv[1]), int(sys.argv[2])
    sqlite_utils.Database(memory=True).close()
    for deadly in itertools.count():
        pid = os.fork()
        if pid == 0:
            migrate(folder / f"{deadly}.db", deadly, already)
        _, status = os.waitpid(pid, 0)
        if os.WIFEXITED(status):
            print(deadly if os.WEXITSTATUS(status) == 0 else "failed")  # noqa: T201 - the test reads it
            return


main()
