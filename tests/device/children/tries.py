"""Tries a store (folder of verdicts, model, store), says so, and waits for the end: of itself, or of its input."""

import sys
from pathlib import Path

from mlxm.device.verdicts import Verdicts

folder, model, kind = sys.argv[1:]
with Verdicts(Path(folder), Path(model)).trial(kind):
    print("trying", flush=True)  # noqa: T201
    sys.stdin.read()
