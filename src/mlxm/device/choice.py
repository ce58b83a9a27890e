"""Which runner a model gets: the fastest store over blocks that is right for it here, else mlx-lm's own caches."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec
import psutil

from mlxm.device import paged, rows
from mlxm.device.batch_build import build_batch_cache_runner
from mlxm.device.kv_store import KVStore, LayerShape, block_bytes, on_cpu, pool_shapes, read_shapes
from mlxm.device.loader import LoadedModel
from mlxm.device.paged import PagedStore
from mlxm.device.reference import Reference, compute_reference
from mlxm.device.rows import RowsStore
from mlxm.device.runner import PagedRunner
from mlxm.device.sampler import Sampler
from mlxm.device.selfcheck import ahead_pays, blocks_needed, find_fault, time_rows, timing_blocks
from mlxm.device.verdicts import Verdict, Verdicts
from mlxm.engine.blocks import num_blocks_for
from mlxm.engine.plan import Runner, RunnerFacts
from mlxm.errors import InternalError, MlxmError, OutOfMemory

MakeStore = Callable[[Any, Sequence[LayerShape], int], KVStore]

_FAILURES = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, MlxmError, OSError, RuntimeError),
    *(TypeError, ValueError),
)
"""What mlx-lm's models raise when a store does not suit them."""
_UNKNOWN_CONTEXT = 4096
_EXPECTED_TOKENS = 4096
"""Room for so many tokens of each row is asked for, where the memory is there."""
_MEMORY_SHARE = {True: 0.4, False: 0.8}
"""The part of free memory that a pool may take, on the CPU and on a GPU."""
_CACHE_BYTES = {True: 256 * 1024 * 1024, False: 2 * 1024 * 1024 * 1024}
"""What mlx may keep of freed memory; with its default on the CPU, 32 MiB, large steps ask the system every time."""
_TIMED_ROWS = 8
_WORTH_IT = 1.1
"""A store that copies what it reads has to be faster by so much, for the memory that it takes."""


class RunnerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What is known or wanted beforehand; None leaves it to the model and the machine."""

    max_rows: int = 16
    context_length: int | None = None
    num_blocks: int | None = None
    memory_bytes: int | None = None
    """What keys and values may take at most."""
    kind: str | None = None
    """A store by its name, unchecked."""
    folder: Path | None = None
    """Where the model lies, to recognise it."""
    verdicts: Path | None = None
    """Where verdicts are kept."""
    clock: Callable[[], float] = time.perf_counter
    """What the runner times its steps by."""


class Candidate(msgspec.Struct, frozen=True):
    """A way to build a store."""

    kind: str
    make: MakeStore


CANDIDATES = (
    (
        Candidate(paged.KIND, PagedStore),
        Candidate(f"{paged.KIND}, prompts apart", partial(PagedStore, joins=False)),
    ),
    (
        Candidate(rows.KIND, RowsStore),
        Candidate(f"{rows.KIND}, masks per group", partial(RowsStore, mask_axes=5)),
    ),
)
"""By families: of each the first one that is right is timed."""


def open_runner(loaded: LoadedModel, options: RunnerOptions) -> Runner:
    """The runner for a model; raises OutOfMemory when no sequence would fit."""
    mx.set_cache_limit(_CACHE_BYTES[on_cpu()])
    sample = Sampler()
    asked = (options.context_length, loaded.config.context_length, _UNKNOWN_CONTEXT)
    context_length = next(length for length in asked if length is not None)
    memory_bytes = _free_bytes() if options.memory_bytes is None else options.memory_bytes
    try:
        shapes = read_shapes(loaded.model)
    except InternalError as error:
        verdict = Verdict(kind=None, why=error.message)
    else:
        verdict = _judge(loaded, shapes, options)
    if verdict.kind is None:
        return build_batch_cache_runner(
            loaded.model,
            sample,
            vocab_size=loaded.vocab_size,
            memory_bytes=memory_bytes,
            max_rows=options.max_rows,
            context_length=context_length,
            why_no_blocks=f"not in blocks: {verdict.why}",
        )
    candidate = _candidate(verdict.kind)
    size = block_bytes(shapes if candidate.kind.startswith(rows.KIND) else pool_shapes(shapes))
    num_blocks = options.num_blocks
    if num_blocks is None:
        num_blocks = plan_pool(size, context_length, options.max_rows, memory_bytes)
    store = candidate.make(loaded.model, shapes, num_blocks)
    facts = RunnerFacts(
        kind=candidate.kind,
        why=verdict.why,
        num_blocks=num_blocks,
        max_rows=options.max_rows,
        shares_prefixes=True,
        runs_ahead=verdict.runs_ahead,
        takes_runs=True,
        block_bytes=size,
    )
    return PagedRunner(store, sample, facts, options.clock)


def plan_pool(block_size_bytes: int, context_length: int, max_rows: int, memory_bytes: int) -> int:
    """How many blocks to have: one whole context, or the usual length for each row, as far as memory goes."""
    wanted = max(num_blocks_for(context_length), max_rows * num_blocks_for(min(context_length, _EXPECTED_TOKENS)))
    possible = memory_bytes // block_size_bytes
    if possible < 2:  # noqa: PLR2004  (scratch, and one to use)
        needed_mb = 2 * block_size_bytes / 1e6
        raise OutOfMemory(
            f"Keys and values need at least {needed_mb:.0f} MB, and {memory_bytes / 1e6:.0f} MB are left for them.",
            hint="Choose a smaller model, or stop other programs.",
        )
    return min(1 + wanted, possible)


def _free_bytes() -> int:
    """What keys and values may take."""
    free = psutil.virtual_memory().available
    if not on_cpu():
        info = mx.device_info()
        limit = info.get("max_recommended_working_set_size", info.get("memory_size", free))
        free = int(limit) - mx.get_active_memory()
    return round(max(0, free) * _MEMORY_SHARE[on_cpu()])


def _candidate(kind: str) -> Candidate:
    for candidate in (candidate for family in CANDIDATES for candidate in family):
        if candidate.kind == kind:
            return candidate
    raise InternalError(f"There is no KV store named {kind!r}.")


def _is_known(kind: str | None) -> bool:
    return kind is None or any(candidate.kind == kind for family in CANDIDATES for candidate in family)


def _judge(loaded: LoadedModel, shapes: Sequence[LayerShape], options: RunnerOptions) -> Verdict:
    if options.kind is not None:
        return Verdict(kind=options.kind, why="it was asked for")
    if options.verdicts is None or options.folder is None:
        return _Trial(loaded, shapes, options.max_rows, None).judge()
    verdicts = Verdicts(options.verdicts, options.folder)
    verdict = verdicts.read()
    if verdict is None or not _is_known(verdict.kind):
        verdict = _Trial(loaded, shapes, options.max_rows, verdicts).judge()
        verdicts.write(verdict)
    return verdict


class _Trial:
    """Tries the candidates on a model."""

    def __init__(
        self, loaded: LoadedModel, shapes: Sequence[LayerShape], max_rows: int, verdicts: Verdicts | None
    ) -> None:
        self._loaded = loaded
        self._shapes = shapes
        self._num_rows = min(max_rows, _TIMED_ROWS)
        self._verdicts = verdicts
        self._fatal: dict[str, bool] = {} if verdicts is None else verdicts.fatal_kinds()
        self._faults: dict[str, str] = dict.fromkeys(self._fatal, "the process ended while it was tried")

    def judge(self) -> Verdict:
        """The fastest one that is right."""
        reference = compute_reference(self._loaded.model, self._shapes, self._loaded.vocab_size)
        right = [found for family in CANDIDATES if (found := self._first_right(family, reference)) is not None]
        times_ms = {candidate.kind: 1e3 * time_s for candidate in right if (time_s := self._time(candidate))}
        is_final = all(self._fatal.values())
        if not times_ms:
            return Verdict(kind=None, why=self._reasons(), is_final=is_final)
        first = next(iter(times_ms))
        kind = min(times_ms, key=lambda kind: times_ms[kind] * (1 if kind == first else _WORTH_IT))
        timed = [f"{kind} {time_ms:.1f} ms" for kind, time_ms in sorted(times_ms.items(), key=lambda item: item[1])]
        why = f"right to {reference.tolerance:.1g}; {self._num_rows} rows: {', '.join(timed)}"
        if reference.untried:
            why += f"; not tried, for time: {', '.join(reference.untried)}"
        reasons = self._reasons()
        return Verdict(
            kind=kind,
            why=f"{why}; {reasons}" if reasons else why,
            runs_ahead=self._runs_ahead(_candidate(kind)),
            is_final=is_final,
        )

    def _reasons(self) -> str:
        return "; ".join(f"not {kind}: {fault}" for kind, fault in self._faults.items())

    def _first_right(self, family: Sequence[Candidate], reference: Reference) -> Candidate | None:
        for candidate in family:
            if candidate.kind in self._fatal:
                continue
            try:
                with self._noted(candidate.kind):
                    store = candidate.make(self._loaded.model, self._shapes, blocks_needed(reference))
                    fault = find_fault(store, reference)
            except _FAILURES as error:
                fault = _in_words(error)
            if fault is None:
                return candidate
            self._faults[candidate.kind] = fault
        return None

    def _time(self, candidate: Candidate) -> float | None:
        try:
            with self._noted(candidate.kind):
                store = candidate.make(self._loaded.model, self._shapes, timing_blocks(self._num_rows))
                return time_rows(store, self._num_rows)
        except _FAILURES as error:
            self._faults[candidate.kind] = _in_words(error)
            return None

    def _runs_ahead(self, candidate: Candidate) -> bool:
        if on_cpu():
            return False
        with self._noted(candidate.kind):
            store = candidate.make(self._loaded.model, self._shapes, timing_blocks(self._num_rows))
            return ahead_pays(store, self._num_rows)

    def _noted(self, kind: str) -> AbstractContextManager[None]:
        """Have the name on disk while a store is tried."""
        return nullcontext() if self._verdicts is None else self._verdicts.trial(kind)


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
