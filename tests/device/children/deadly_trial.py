"""Opens a runner (model folder, folder of verdicts) with a store that ends the process while it is tried."""

import os
import signal
import sys
from pathlib import Path

from mlxm.device.blas import open_blas

open_blas()

from mlxm.device import choice, paged  # noqa: E402  (after the BLAS)
from mlxm.device.loader import load, use_plain_kernels  # noqa: E402


def end_process(*_: object) -> None:
    """As the kernel or a driver may."""
    os.kill(os.getpid(), signal.SIGKILL)


use_plain_kernels()
choice.CANDIDATES = ((choice.Candidate(paged.KIND, end_process),), *choice.CANDIDATES[1:])
model, verdicts = map(Path, sys.argv[1:])
choice.open_runner(load(model, lambda *_: None), choice.RunnerOptions(folder=model, verdicts=verdicts))
