import os
import select
import time
from collections.abc import Callable

import psutil
import pytest


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
