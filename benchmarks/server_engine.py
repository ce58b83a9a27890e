"""The engine alone, in a process of its own: what the same answers take without a server around it.

A line of JSON on stdin says how long the prompts and answers are; one on stdout, what CPU time they took.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

import msgspec

from benchmarks.server_models import VOCABULARY
from mlxm.device.blas import open_blas

_FIRST_WORD = 2000
_MAX_ROWS = 16


class Load(msgspec.Struct, frozen=True):
    """The prompts, by their lengths, and how many tokens each answer has."""

    lengths: tuple[int, ...]
    max_tokens: int
    seed: int


class EngineAlone:
    """The process of the engine, from outside."""

    def __init__(self, folder: Path) -> None:
        code = f"from benchmarks.server_engine import run_loads; run_loads({str(folder)!r})"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self._next_seed = 0
        self.cpu_s((8, 8), 2)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()

    def cpu_s(self, lengths: tuple[int, ...], max_tokens: int) -> float:
        """What answers to prompts of these lengths take."""
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the engine has no pipes")
        self._next_seed += 1
        self._process.stdin.write(msgspec.json.encode(Load(lengths, max_tokens, self._next_seed)) + b"\n")
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the engine failed")
        return msgspec.json.decode(line, type=float)


def run_loads(folder: str) -> None:
    """Answer until stdin ends."""
    open_blas(num_threads=1)
    from benchmarks.engine_contenders import MlxmEngine, as_in_worker  # noqa: PLC0415  # loads mlx
    from mlxm.device.choice import RunnerOptions  # noqa: PLC0415  # as above
    from mlxm.device.loader import load  # noqa: PLC0415  # as above

    path = Path(folder)
    with as_in_worker():
        loaded = load(path, lambda _done, _total: None)
    options = RunnerOptions(max_rows=_MAX_ROWS, folder=path, verdicts=path / "verdicts")
    engine = MlxmEngine(loaded, options)
    for line in sys.stdin.buffer:
        order = msgspec.json.decode(line, type=Load)
        source = random.Random(order.seed)  # noqa: S311  # the same prompts every time
        began_s = time.process_time()
        for length in order.lengths:
            engine.add([source.randrange(_FIRST_WORD, VOCABULARY) for _ in range(length)], order.max_tokens)
        num_tokens = 0
        while engine.has_work:
            num_tokens += engine.step()
        if num_tokens != len(order.lengths) * order.max_tokens:
            raise RuntimeError(f"{num_tokens} tokens came for {order}")
        sys.stdout.buffer.write(msgspec.json.encode(time.process_time() - began_s) + b"\n")
        sys.stdout.buffer.flush()
