"""Hold the lock of the home named first until standard input ends."""

import sys
from pathlib import Path

from mlxm.errors import AlreadyRunning
from mlxm.store.lock import HomeLock

try:
    with HomeLock(Path(sys.argv[1])):
        print("held", flush=True)  # noqa: T201 - the test reads it
        sys.stdin.read()
except AlreadyRunning as error:
    print(error.message, flush=True)  # noqa: T201 - the test reads it
