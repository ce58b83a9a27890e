"""What models in one pool cost each other, and what a spare worker saves.

load: a small model streams while a larger one is loaded; its steps per second against a quiet time just before.
prefill: the same while the larger one reads a long prompt.
spare: from the order until the tiny model answers, with a spare worker and without one.

The steps of the small model are counted over the whole of what disturbs it, so that no round is chosen.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median

import msgspec

from benchmarks.report import Gate, Report, Value, median_ratio, run_benchmark
from mlxm.frames import Delta, Generate
from mlxm.pool.launch import Workers
from mlxm.pool.options import LocalModel, Parts, PoolOptions
from mlxm.pool.pool import Pool
from mlxm.pool.worker import WorkerOptions
from mlxm.testing import ARCHITECTURES, build_models
from mlxm.tiny import build_builtin
from mlxm.types import Sampling

LOAD_TARGET = 0.7
PREFILL_TARGET = 0.4
SPARE_TARGET = 0.6
LARGE = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 32000,
    "max_position_embeddings": 8192,
}
PROMPT_TOKENS = {True: 500, False: 4000}
BOUND_S = 120.0
_WARM_UP_S = 0.5
_LONG = 8000
_NO_SPARE = PoolOptions(has_spare=False, keep_alive_s=None)


class Folders(msgspec.Struct, frozen=True):
    """The models, and what workers remember of them."""

    tiny: LocalModel
    large: LocalModel
    verdicts: Path


def measure(is_quick: bool) -> Report:  # noqa: FBT001  # the one argument of every benchmark
    """Measure everything on models that are built for it."""
    with tempfile.TemporaryDirectory() as scratch:
        return asyncio.run(_measure(build(Path(scratch)), is_quick=is_quick))


def build(scratch: Path) -> Folders:
    """A tiny model and one that takes a while."""
    config = {**ARCHITECTURES["qwen3"], **LARGE}
    large = build_models({"large": config}, scratch / "built")["large"]
    return Folders(
        tiny=LocalModel(name="tiny", folder=build_builtin(scratch), context_length=8192),
        large=LocalModel(name="large", folder=large, context_length=8192),
        verdicts=scratch / "verdicts",
    )


async def _measure(models: Folders, *, is_quick: bool) -> Report:
    num_rounds = 1 if is_quick else 9
    async with pool_of(models, _NO_SPARE) as pool:  # stores are tried once, and the verdict kept
        await load(pool, models.tiny)
        await load(pool, models.large)
    reports = [
        await measure_neighbours(models, num_rounds, PROMPT_TOKENS[is_quick]),
        await measure_spare(models, num_rounds),
    ]
    return Report(
        rows=tuple(row for report in reports for row in report.rows),
        gates=tuple(gate for report in reports for gate in report.gates),
    )


@asynccontextmanager
async def pool_of(models: Folders, options: PoolOptions) -> AsyncIterator[Pool]:
    """A pool of real workers."""
    pool = Pool(options, Parts(launcher=Workers(WorkerOptions(verdicts=models.verdicts))))
    try:
        async with asyncio.timeout(BOUND_S * 5):
            yield pool
    finally:
        await pool.close()


async def load(pool: Pool, model: LocalModel) -> float:
    """Load a model; the seconds that took."""
    began_s = time.perf_counter()
    pool.load(model)
    async for row in pool.watch(model.name):
        if row.is_settled and row.state != "ready":
            raise RuntimeError(row.reason)
    return time.perf_counter() - began_s


class Stream:
    """A model that answers without end, and how many tokens it has said."""

    def __init__(self, pool: Pool, model: LocalModel) -> None:
        self._pool = pool
        self._model = model
        self._num_tokens = 0
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        number = 0
        while True:
            number += 1
            order = Generate(
                request_id=f"stream {number}",
                prompt_ids=(300, 301),
                sampling=Sampling(temperature=0.0, ignore_eos=True),
                max_tokens=_LONG,
            )
            async for event in self._pool.generate(self._model, order):
                if isinstance(event, Delta):
                    self._num_tokens += len(event.token_ids)

    async def rate(self, work: Awaitable[object]) -> float:
        """Tokens per second while something else is done."""
        began_s, num_before = time.perf_counter(), self._num_tokens
        await work
        return (self._num_tokens - num_before) / (time.perf_counter() - began_s)

    async def end(self) -> None:
        """Stop it."""
        self._task.cancel()
        await asyncio.wait([self._task])


async def measure_neighbours(models: Folders, num_rounds: int, num_tokens: int) -> Report:
    """A stream beside a load, and beside a long prompt; each against a quiet time of the same length before it."""
    rates: dict[str, list[float]] = {"quiet before load": [], "load": [], "quiet before prefill": [], "prefill": []}
    took: dict[str, list[float]] = {"load": [], "prefill": []}
    async with pool_of(models, _NO_SPARE) as pool:
        await load(pool, models.tiny)
        stream = Stream(pool, models.tiny)
        await asyncio.sleep(_WARM_UP_S)
        for number in range(num_rounds):
            for name, times in took.items():
                rates[f"quiet before {name}"].append(await stream.rate(asyncio.sleep(1.0)))
                began_s = time.perf_counter()
                disturbance = (
                    load(pool, models.large) if name == "load" else read_prompt(pool, models.large, number, num_tokens)
                )
                rates[name].append(await stream.rate(disturbance))
                times.append(time.perf_counter() - began_s)
            await pool.unload("large")
        await stream.end()
    rows: list[dict[str, Value]] = [
        {"measured": name, "tokens_per_s": round(median(values), 1)} for name, values in rates.items()
    ]
    rows += [
        {"measured": f"{name} beside a stream", "wall_s": round(median(values), 3)} for name, values in took.items()
    ]
    kept = {name: median_ratio(rates[name], rates[f"quiet before {name}"]) for name in took}
    gates = (
        Gate.at_least("steps kept while another model loads", kept["load"], LOAD_TARGET),
        Gate.at_least("steps kept while another model reads a long prompt", kept["prefill"], PREFILL_TARGET),
    )
    return Report(rows=tuple(rows), gates=gates)


async def read_prompt(pool: Pool, model: LocalModel, number: int, num_tokens: int) -> None:
    """Have a model read a long prompt that it has not read before, and say one token."""
    prompt = tuple(5 + (place * 7 + number * 131) % 1000 for place in range(num_tokens))
    order = Generate(request_id=f"prompt {number}", prompt_ids=prompt, max_tokens=1)
    async for _ in pool.generate(model, order):
        pass


async def measure_spare(models: Folders, num_rounds: int) -> Report:
    """Loads of the tiny model, with a spare worker and without one, in turn."""
    times: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(num_rounds):
        for has_spare in (True, False):
            times[has_spare].append(await _load_once(models, has_spare=has_spare))
    rows: tuple[dict[str, Value], ...] = tuple(
        {"measured": f"load {'with' if has_spare else 'without'} a spare worker", "wall_s": round(median(values), 3)}
        for has_spare, values in times.items()
    )
    gate = Gate.at_most("load with a spare worker / without", median_ratio(times[True], times[False]), SPARE_TARGET)
    return Report(rows=rows, gates=(gate,))


async def _load_once(models: Folders, *, has_spare: bool) -> float:
    launcher = Workers(WorkerOptions(verdicts=models.verdicts))
    launcher.refill(has_spare=has_spare)
    pool = Pool(_NO_SPARE, Parts(launcher=launcher))
    try:
        if has_spare:
            await asyncio.sleep(2.0)  # it has imported all it needs long since when the next model is wanted
        return await load(pool, models.tiny)
    finally:
        await pool.close()


if __name__ == "__main__":
    sys.exit(run_benchmark("pool", measure))
