"""The cases of `benchmarks.engine`, each a row of its report, and the values that are gated."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from statistics import median, quantiles

import mlx.core as mx

from benchmarks.engine_contenders import (
    Contender,
    MlxmEngine,
    OneAtATime,
    Peer,
    blocks_for,
    computed_caches,
)
from benchmarks.engine_limits import Size, bytes_per_s, flops_per_s
from benchmarks.engine_targets import gate_on
from benchmarks.report import Report, Value, median_ratio
from mlxm.device.choice import RunnerOptions
from mlxm.device.loader import load
from mlxm.testing import build_models

_VOCABULARY = 32000
_CONTEXT = 8192
_SIZES: Mapping[str, Mapping[str, int | str]] = {
    "30M": {
        "model_type": "llama",
        "hidden_size": 384,
        "num_hidden_layers": 12,
        "intermediate_size": 1024,
        "num_attention_heads": 6,
    },
    "150M": {
        "model_type": "qwen3",
        "hidden_size": 640,
        "num_hidden_layers": 24,
        "intermediate_size": 2048,
        "num_attention_heads": 10,
    },
}
_COMMON = {
    "num_key_value_heads": 2,
    "head_dim": 64,
    "rms_norm_eps": 1e-6,
    "vocab_size": _VOCABULARY,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "max_position_embeddings": _CONTEXT,
}
_NUM_ROWS = 16
_SPARE_STEPS = 64
"""In which those that start first wait for the last, and all get warm."""
_NUM_STREAMS = 8
_STREAM_TOKENS = 512
_QUIET_STEPS = 32
_WARM_PREFIX = 1000
_OWN_TOKENS = 8

_Row = dict[str, Value]


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is measured, and of what length."""

    models: tuple[str, ...]
    num_rounds: int
    warm_up_steps: int
    steps_per_round: int
    longest_context: int
    num_runs: int
    run_tokens: int
    longest_run_prompt: int
    long_prompt: int
    left_out: frozenset[str] = frozenset()
    """Cases that take too long."""


FULL = Effort(
    models=("30M", "150M"),
    num_rounds=5,
    warm_up_steps=3,
    steps_per_round=8,
    longest_context=2048,
    num_runs=3,
    run_tokens=64,
    longest_run_prompt=1024,
    long_prompt=4000,
)
QUICK = Effort(
    models=("30M",),
    num_rounds=2,
    warm_up_steps=2,
    steps_per_round=2,
    longest_context=768,
    num_runs=1,
    run_tokens=16,
    longest_run_prompt=256,
    long_prompt=1000,
    left_out=frozenset({"decode_shared_4096"}),
)


@dataclass(frozen=True, kw_only=True)
class Result:
    """A row of the report, and the values on which gates are."""

    row: _Row
    gated: Mapping[str, float]


class Cases:
    """Runs those cases whose names are given, or all."""

    def __init__(self, only: frozenset[str]) -> None:
        self._only = only

    def measure(self, is_quick: bool) -> Report:  # noqa: FBT001  # the one argument of every benchmark
        """Every case on every model; the last model's values are the gates, unless they were measured in a hurry."""
        rows: list[_Row] = []
        gated: Mapping[str, float] = {}
        with tempfile.TemporaryDirectory(prefix="mlxm-bench-") as folder:
            effort = QUICK if is_quick else FULL
            for name in effort.models:
                model_rows, gated = self._measure_model(name, Path(folder), effort)
                rows += model_rows
        gates = tuple(gate_on(name, value) for name, value in gated.items())
        if is_quick:
            told = {gate.name: f"{gate.value} (target {gate.target})" for gate in gates}
            return Report(rows=(*rows, {"case": "gates, for information", **told}), gates=())
        return Report(rows=tuple(rows), gates=gates)

    def _measure_model(self, name: str, folder: Path, effort: Effort) -> tuple[list[_Row], Mapping[str, float]]:
        config = {**_COMMON, **_SIZES[name]}
        path = build_models({name: config}, folder)[name]
        bench = Bench(path, effort)
        rows: list[_Row] = [{"model": name, "case": "machine", **bench.machine_row()}]
        gated: dict[str, float] = {}
        for case, measure in bench.cases.items():
            if case in effort.left_out or (self._only and case not in self._only):
                continue
            mx.clear_cache()
            result = measure()
            rows.append({"model": name, "case": case, **result.row})
            gated |= result.gated
        return rows, gated


class Bench:
    """The cases on one model."""

    def __init__(self, folder: Path, effort: Effort) -> None:
        self._folder = folder
        self._loaded = loaded = load(folder, lambda _done, _total: None)
        self._size = Size.of(loaded.model)
        self._effort = effort
        self._random = random.Random(0)  # noqa: S311  # the same prompts every time

    @cached_property
    def cases(self) -> Mapping[str, Callable[[], Result]]:
        """By the names that --only takes."""
        return {
            "decode_mixed": self._decode_mixed,
            "decode_equal_512": lambda: self._decode("decode_equal_512", self._prompts([512] * _NUM_ROWS)),
            "decode_shared_1024": lambda: self._decode_shared(1024),
            "decode_shared_4096": lambda: self._decode_shared(4096),
            "run_mixed": self._run_mixed,
            "run_unique_128": lambda: self._run("run_unique_128", [128] * _NUM_ROWS),
            "warm_prefix": self._warm_prefix,
            "fairness": self._fairness,
        }

    def machine_row(self) -> _Row:
        """What the limits are computed from."""
        return {
            "weights_bytes": (self._size.num_weights + self._size.num_head_weights) * 4,
            "bandwidth_gb_per_s": round(bytes_per_s() / 1e9, 1),
            "gflops_16_rows": round(flops_per_s(_NUM_ROWS) / 1e9, 1),
            "gflops_512_rows": round(flops_per_s(512) / 1e9, 1),
            "store": self._ours([_CONTEXT]).store,
        }

    # ── decode ───────────────────────────────────────────────────────────────────────────────────

    def _decode_mixed(self) -> Result:
        lengths = _spread(64, self._effort.longest_context)
        prompts = self._prompts(lengths)
        alone = OneAtATime(self._loaded.model, computed_caches(self._loaded.model, lengths))
        return self._decode("decode_mixed_vs_batch_generator", prompts, alone=alone)

    def _decode_shared(self, num_shared: int) -> Result:
        prefix = self._prompt(num_shared)
        prompts = [prefix + self._prompt(64) for _ in range(_NUM_ROWS)]
        return self._decode(f"decode_shared_{num_shared}", prompts, num_shared=num_shared)

    def _decode(
        self, name: str, prompts: list[list[int]], *, num_shared: int = 0, alone: OneAtATime | None = None
    ) -> Result:
        """Milliseconds of a step with a row for each prompt, all prompts computed before."""
        lengths = [len(prompt) for prompt in prompts]
        num_new = _SPARE_STEPS + self._effort.num_rounds * self._effort.steps_per_round
        ours = self._ours([length + num_new for length in lengths])
        self._start_together(ours, prompts, num_new)
        peer = Peer(self._loaded.model)
        peer.add_computed(computed_caches(self._loaded.model, lengths))
        contenders: dict[str, Contender] = {"mlxm": ours, "batch_generator": peer}
        if alone is not None:
            contenders["one_at_a_time"] = alone
        times = _interleaved(contenders, self._effort)
        limit_s = self._size.decode_s(lengths, sum(lengths) - num_shared * (len(prompts) - 1))
        ratio = median_ratio(times["batch_generator"], times["mlxm"])
        row: _Row = {f"{name}_ms": _ms(median(values)) for name, values in times.items()}
        row |= {
            "limit_ms": _ms(limit_s),
            "ratio": _two(ratio),
            "limit": _two(median(times["batch_generator"]) / limit_s),
        }
        gated = {name: ratio}
        if alone is not None:
            gated["decode_mixed_vs_one_at_a_time"] = median_ratio(times["one_at_a_time"], times["mlxm"])
            row["ratio_one_at_a_time"] = _two(gated["decode_mixed_vs_one_at_a_time"])
            row["limit_one_at_a_time"] = _two(median(times["one_at_a_time"]) / limit_s)
        return Result(row=row, gated=gated)

    # ── whole runs ───────────────────────────────────────────────────────────────────────────────

    def _run_mixed(self) -> Result:
        return self._run("run_mixed", _spread(64, self._effort.longest_run_prompt), with_memory=True)

    def _run(self, name: str, lengths: list[int], *, with_memory: bool = False) -> Result:
        """Seconds from the arrival of all prompts to the end of the last answer."""
        runs: dict[str, list[_Run]] = {"mlxm": [], "batch_generator": []}
        for number in range(self._effort.num_runs):
            prompts = self._prompts(lengths)
            for contender in _turn(list(runs), number):
                work = self._run_ours if contender == "mlxm" else self._run_peer
                runs[contender].append(_measured(partial(work, prompts)))
        ours, peer = runs["mlxm"], runs["batch_generator"]
        ratio = median_ratio([run.cpu_s for run in peer], [run.cpu_s for run in ours])
        limit_s = sum(map(self._size.prefill_s, lengths)) + self._effort.run_tokens * self._size.decode_s(
            [length + self._effort.run_tokens // 2 for length in lengths]
        )
        row: _Row = {"prompts": f"{min(lengths)}-{max(lengths)}", "new_tokens": self._effort.run_tokens}
        row |= {f"{name}_s": _two(median(run.cpu_s for run in values)) for name, values in runs.items()}
        row |= {"limit_s": _two(limit_s), "ratio": _two(ratio)}
        row["limit"] = _two(median(run.cpu_s for run in peer) / limit_s)
        gated = {name: ratio}
        if with_memory:
            memory = median(mine.peak_bytes / theirs.peak_bytes for mine, theirs in zip(ours, peer, strict=True))
            least = (sum(lengths) + len(lengths) * self._effort.run_tokens) * self._size.token_bytes
            row |= {
                "mlxm_peak_mb": round(median(run.peak_bytes for run in ours) / 1e6),
                "batch_generator_peak_mb": round(median(run.peak_bytes for run in peer) / 1e6),
                "ratio_memory": _two(memory),
                "limit_memory": _two(least / median(run.peak_bytes for run in peer)),
            }
            gated["peak_memory"] = memory
        return Result(row=row, gated=gated)

    def _run_ours(self, prompts: Sequence[Sequence[int]]) -> None:
        ours = self._ours([len(prompt) + self._effort.run_tokens for prompt in prompts])
        for prompt in prompts:
            ours.add(prompt, self._effort.run_tokens)
        while ours.has_work:
            ours.step()

    def _run_peer(self, prompts: Sequence[Sequence[int]]) -> None:
        peer = Peer(self._loaded.model)
        peer.add_all(prompts, self._effort.run_tokens)
        while peer.num_open:
            peer.step()

    # ── first tokens ─────────────────────────────────────────────────────────────────────────────

    def _warm_prefix(self) -> Result:
        """CPU time to the first token of a prompt whose prefix is new, and of one whose prefix was there before."""
        ours = self._ours([2 * _CONTEXT])
        cold, warm = [], []
        for _ in range(self._effort.num_rounds):
            prefix = self._prompt(_WARM_PREFIX)
            cold.append(_first_token_s(ours, prefix + self._prompt(_OWN_TOKENS)))
            warm.append(_first_token_s(ours, prefix + self._prompt(_OWN_TOKENS)))
        ratio = median_ratio(warm, cold)
        num_left = _WARM_PREFIX % 32 + _OWN_TOKENS - 1
        last_s = self._size.decode_s([_WARM_PREFIX])
        limit_s = self._size.prefill_s(num_left, _WARM_PREFIX) + last_s
        row: _Row = {
            "cold_ms": _ms(median(cold)),
            "warm_ms": _ms(median(warm)),
            "ratio": round(ratio, 4),
            "limit": round(limit_s / median(cold), 4),
        }
        return Result(row=row, gated={"warm_prefix": ratio})

    def _fairness(self) -> Result:
        """Streams run while a long prompt arrives: how long their steps become, and the prompt's first token takes."""
        alone_s = _first_token_s(self._ours([self._effort.long_prompt + 32]), self._prompt(self._effort.long_prompt))
        ours = self._ours([self._effort.long_prompt + 32] + [_STREAM_TOKENS + 1024] * _NUM_STREAMS)
        self._start_together(ours, self._prompts([_STREAM_TOKENS] * _NUM_STREAMS), 1024)
        quiet = [_timed_s(ours.step) for _ in range(_QUIET_STEPS)]
        newcomer = ours.add(self._prompt(self._effort.long_prompt), 2)
        busy: list[float] = []
        got: list[str] = []
        while newcomer not in got:
            busy.append(_timed_s(lambda: got.extend(ours.step_of())))
        p95_s = quantiles(busy, n=20)[-1]
        gated = {
            "step_p95_under_prompt": p95_s / median(quiet),
            "prompt_under_streams": sum(busy) / alone_s,
        }
        row: _Row = {
            "long_prompt": self._effort.long_prompt,
            "quiet_ms": _ms(median(quiet)),
            "busy_p95_ms": _ms(p95_s),
            "ratio_step": _two(gated["step_p95_under_prompt"]),
            "alone_s": _two(alone_s),
            "under_streams_s": _two(sum(busy)),
            "ratio_prompt": _two(gated["prompt_under_streams"]),
            "num_steps": len(busy),
            "alone_limit_s": _two(self._size.prefill_s(self._effort.long_prompt)),
        }
        return Result(row=row, gated=gated)

    # ── parts ────────────────────────────────────────────────────────────────────────────────────

    def _ours(self, lengths: Sequence[int]) -> MlxmEngine:
        """Our engine on the store that the product chooses, with a pool for sequences of these lengths."""
        options = RunnerOptions(
            num_blocks=blocks_for(lengths),
            folder=self._folder,
            verdicts=self._folder / "verdicts",
            clock=time.process_time,  # it paces itself by what is measured, so that other programs do not count
        )
        return MlxmEngine(self._loaded, options)

    def _start_together(self, ours: MlxmEngine, prompts: Sequence[Sequence[int]], num_new: int) -> None:
        """Streams that all stand where their prompts end: these were computed before, and are found again."""
        for num_tokens in (1, num_new):
            for prompt in prompts:
                ours.add(prompt, num_tokens)
            while ours.has_work and ours.step() < len(prompts):
                pass

    def _prompts(self, lengths: Sequence[int]) -> list[list[int]]:
        return [self._prompt(length) for length in lengths]

    def _prompt(self, length: int) -> list[int]:
        return [self._random.randrange(_VOCABULARY) for _ in range(length)]


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What a run from beginning to end took; memory is what it used at most, beside the weights."""

    cpu_s: float
    peak_bytes: int


def _measured(work: Callable[[], None]) -> _Run:
    mx.clear_cache()
    before_bytes = mx.get_active_memory()
    mx.reset_peak_memory()
    cpu_s = _timed_s(work)
    return _Run(cpu_s=cpu_s, peak_bytes=mx.get_peak_memory() - before_bytes)


def _interleaved(contenders: Mapping[str, Contender], effort: Effort) -> dict[str, list[float]]:
    """Seconds per step of each contender in each round."""
    for contender in contenders.values():
        while contender.step() < _NUM_ROWS:
            pass
        _run_steps(contender, effort.warm_up_steps)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(effort.num_rounds):
        for name in _turn(list(contenders), number):
            seconds = _timed_s(partial(_run_steps, contenders[name], effort.steps_per_round))
            times[name].append(seconds / effort.steps_per_round)
    return times


def _run_steps(contender: Contender, num_steps: int) -> None:
    for _ in range(num_steps):
        num_tokens = contender.step()
        if num_tokens != _NUM_ROWS:
            raise RuntimeError(f"a step of {type(contender).__name__} made {num_tokens} tokens, not {_NUM_ROWS}")


def _turn(names: list[str], number: int) -> list[str]:
    """Whoever was first in one round is last in the next one."""
    return names if number % 2 == 0 else names[::-1]


def _first_token_s(ours: MlxmEngine, prompt: Sequence[int]) -> float:
    """From a prompt's arrival to its first token; the answer is then read to its end."""
    request_id = ours.add(prompt, 2)
    seconds = 0.0
    got: list[str] = []
    while request_id not in got:
        seconds += _timed_s(lambda: got.extend(ours.step_of()))
    while ours.has_work:
        ours.step()
    return seconds


def _timed_s(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def _spread(shortest: int, longest: int) -> list[int]:
    """Lengths for all rows, each a fixed factor above the one before, in mixed order."""
    factor = longest / shortest
    lengths = [round(shortest * factor ** (place / (_NUM_ROWS - 1))) for place in range(_NUM_ROWS)]
    random.Random(0).shuffle(lengths)  # noqa: S311  # the same order every time
    return lengths


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 1)


def _two(value: float) -> float:
    return round(value, 2)
