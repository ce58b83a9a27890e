"""The cases of `benchmarks.server`, each made of rounds in which the contenders take turns."""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median, quantiles

import msgspec

from benchmarks.report import Gate, Report, Value, median_ratio
from benchmarks.server_clients import Ask, Clients, Heard, Job
from benchmarks.server_contenders import LM, OURS, VLM, Server, body, running
from benchmarks.server_engine import EngineAlone
from benchmarks.server_frames import frame_row
from benchmarks.server_models import build, words

_GATED_CLIENTS = 16
_UNIQUE_WORDS = 116
"""With the template's tokens, and the words that are more than one, 128."""
_SHORTEST_WORDS = 52
_QUESTION_WORDS = 24
_TARGETS: Mapping[str, tuple[float, bool]] = {
    "unique_128_16_clients": (1.0, False),
    "mixed": (1.3, False),
    "shared_prefix_vs_mlx_lm": (1.3, False),
    "shared_prefix_vs_mlx_vlm": (1.3, False),
    "ttft_p50_16_clients": (0.6, True),
    "inter_token_p95_mixed": (0.5, True),
    "http_adds": (0.08, True),
}
"""What each value is held to, and whether that is the most it may be."""

_Row = dict[str, Value]


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is measured."""

    sizes: tuple[str, ...]
    num_rounds: int
    clients: tuple[int, ...]
    requests_per_client: int
    max_tokens: int
    mixed_requests: int
    mixed_longest: int
    mixed_over_s: Mapping[str, float]
    """In which the mixed load's requests arrive, by the model's size."""
    shared_words: int
    shared_clients: int


FULL = Effort(
    sizes=("30M", "150M"),
    num_rounds=5,
    clients=(1, 4, 8, 16, 32),
    requests_per_client=2,
    max_tokens=64,
    mixed_requests=20,
    mixed_longest=1980,
    mixed_over_s={"30M": 10.0, "150M": 40.0},
    shared_words=1000,
    shared_clients=16,
)
QUICK = Effort(
    sizes=("30M",),
    num_rounds=1,
    clients=(1, 16),
    requests_per_client=2,
    max_tokens=16,
    mixed_requests=6,
    mixed_longest=600,
    mixed_over_s={"30M": 1.5},
    shared_words=500,
    shared_clients=6,
)


@dataclass(frozen=True, kw_only=True)
class Lap:
    """What one contender did in one round."""

    cpu_s: float
    server_s: float
    """What of that was not the model's, for ours."""
    wall_s: float
    answers: tuple[Heard, ...]

    @property
    def num_tokens(self) -> int:
        """All tokens of all answers."""
        return sum(answer.completion_tokens for answer in self.answers)

    @property
    def ttft_p50_s(self) -> float:
        """The middle one of the times to the first text."""
        return median(answer.frames_s[0] for answer in self.answers)

    @property
    def inter_token_p95_s(self) -> float:
        """Of all times between two frames with text of the same answer, the one that 95 % stay below."""
        gaps = [
            later - earlier
            for answer in self.answers
            for earlier, later in zip(answer.frames_s, answer.frames_s[1:], strict=False)
        ]
        return quantiles(gaps, n=20)[-1]


Laps = dict[str, list[Lap]]


class Cases:
    """Runs those cases whose names are given, or all, on one size of model, or all."""

    def __init__(self, only: frozenset[str], size: str | None, num_rounds: int | None) -> None:
        self._only = only
        self._size = size
        self._num_rounds = num_rounds

    def measure(self, is_quick: bool) -> Report:  # noqa: FBT001  # the one argument of every benchmark
        """The last model's values are the gates, unless they were measured in a hurry."""
        effort = QUICK if is_quick else FULL
        if self._num_rounds is not None:
            effort = replace(effort, num_rounds=self._num_rounds)
        rows: list[_Row] = []
        gated: Mapping[str, float] = {}
        for size in effort.sizes if self._size is None else (self._size,):
            with _bench(size, effort) as bench:
                model_rows, gated = bench.measure(self._only)
                rows += [{"model": size, **row} for row in model_rows]
        gates = tuple(_gate(name, value) for name, value in gated.items())
        if is_quick:
            told = {gate.name: f"{gate.value} (target {gate.target})" for gate in gates}
            return Report(rows=(*rows, {"case": "gates, for information", **told}), gates=())
        return Report(rows=tuple(rows), gates=gates)


class Bench:
    """The cases on one model."""

    def __init__(self, size: str, effort: Effort, servers: Mapping[str, Server], processes: Processes) -> None:
        self._effort = effort
        self._servers = servers
        self._clients = processes.clients
        self._engine = processes.engine
        self._mixed_over_s = effort.mixed_over_s[size]
        self._random = random.Random(0)  # noqa: S311  # the same prompts every time

    def measure(self, only: frozenset[str]) -> tuple[list[_Row], dict[str, float]]:
        """The rows of the cases, and the values on which gates are."""
        cases: Mapping[str, Callable[[], tuple[list[_Row], dict[str, float]]]] = {
            "unique_128": self._unique,
            "mixed": self._mixed,
            "shared_prefix": self._shared,
        }
        rows: list[_Row] = []
        gated: dict[str, float] = {}
        for name, measure in cases.items():
            if only and name not in only:
                continue
            case_rows, case_gated = measure()
            rows += case_rows
            gated |= case_gated
        return rows, gated

    # ── cases ────────────────────────────────────────────────────────────────────────────────────

    def _unique(self) -> tuple[list[_Row], dict[str, float]]:
        rows: list[_Row] = []
        gated: dict[str, float] = {}
        for num_clients in self._effort.clients:
            engine_s: list[float] = []
            after = partial(self._run_engine, engine_s) if num_clients == _GATED_CLIENTS else None
            laps = self._interleaved((OURS, LM), partial(self._unique_asks, num_clients), after)
            case = f"unique_128, {num_clients} clients"
            rows += _rows(case, laps)
            if num_clients == _GATED_CLIENTS:
                gated["unique_128_16_clients"] = _faster(laps, LM)
                gated["ttft_p50_16_clients"] = _shorter(laps, lambda lap: lap.ttft_p50_s)
                gated["http_adds"] = median_ratio([lap.cpu_s for lap in laps[OURS]], engine_s) - 1
                rows.append({"case": case, "measured": "engine alone", "cpu_s": _two(median(engine_s))})
                rows.append(self._frame_row(laps[OURS]))
        return rows, gated

    def _mixed(self) -> tuple[list[_Row], dict[str, float]]:
        laps = self._interleaved((OURS, LM), self._mixed_asks)
        gated = {
            "mixed": _faster(laps, LM),
            "inter_token_p95_mixed": _shorter(laps, lambda lap: lap.inter_token_p95_s),
        }
        return _rows("mixed", laps), gated

    def _shared(self) -> tuple[list[_Row], dict[str, float]]:
        laps = self._interleaved((OURS, LM, VLM), self._shared_asks)
        gated = {"shared_prefix_vs_mlx_lm": _faster(laps, LM), "shared_prefix_vs_mlx_vlm": _faster(laps, VLM)}
        return _rows("shared_prefix", laps), gated

    # ── what is asked; a job after another ───────────────────────────────────────────────────────

    def _unique_asks(self, num_clients: int) -> list[_Asked]:
        num_each = self._effort.requests_per_client
        return [[[_Text(words(_UNIQUE_WORDS, self._random)) for _ in range(num_each)] for _ in range(num_clients)]]

    def _mixed_asks(self) -> list[_Asked]:
        effort = self._effort
        factor = effort.mixed_longest / _SHORTEST_WORDS
        last = effort.mixed_requests - 1
        lengths = [round(_SHORTEST_WORDS * factor ** (place / last)) for place in range(effort.mixed_requests)]
        self._random.shuffle(lengths)
        times_s = sorted(self._random.uniform(0, self._mixed_over_s) for _ in lengths)
        return [
            [[_Text(words(length, self._random), at_s=at_s)] for length, at_s in zip(lengths, times_s, strict=True)]
        ]

    def _shared_asks(self) -> list[_Asked]:
        """The first to ask computes the prefix, before the others come: every server can find it then."""
        prefix = words(self._effort.shared_words, self._random)
        texts = [
            [_Text(words(_QUESTION_WORDS, self._random), system=prefix)] for _ in range(self._effort.shared_clients)
        ]
        return [texts[:1], texts[1:]]

    # ── rounds ───────────────────────────────────────────────────────────────────────────────────

    def _interleaved(
        self,
        names: Sequence[str],
        ask: Callable[[], list[_Asked]],
        after_ours: Callable[[Lap], None] | None = None,
    ) -> Laps:
        """All contenders are asked the same in a round; whoever was first in one round is last in the next one."""
        laps: Laps = {name: [] for name in names}
        for number in range(self._effort.num_rounds):
            jobs = ask()
            for name in names if number % 2 == 0 else names[::-1]:
                lap = self._run(self._servers[name], jobs)
                print(f"{name}: {lap.num_tokens} tokens, {lap.cpu_s:.1f} s of CPU", file=sys.stderr, flush=True)
                laps[name].append(lap)
                if name == OURS and after_ours is not None:
                    after_ours(lap)
        return laps

    def _run(self, server: Server, jobs: list[_Asked]) -> Lap:
        before = server.cpu_by_role()
        results = [self._clients.run(self._job(server, asked)) for asked in jobs]
        taken = {role: cpu_s - before.get(role, 0.0) for role, cpu_s in server.cpu_by_role().items()}
        answers = tuple(answer for result in results for answer in result.answers)
        for answer in answers:
            if answer.completion_tokens != self._effort.max_tokens:
                raise RuntimeError(f"{server.name} gave {answer.completion_tokens} tokens ({answer.finish_reason})")
        return Lap(
            cpu_s=sum(taken.values()),
            server_s=taken["server"],
            wall_s=sum(result.wall_s for result in results),
            answers=answers,
        )

    def _job(self, server: Server, asked: _Asked) -> Job:
        return Job(port=server.port, clients=tuple(tuple(self._ask(server, text) for text in each) for each in asked))

    def _ask(self, server: Server, text: _Text) -> Ask:
        content = body(server, text.user, self._effort.max_tokens, system=text.system)
        return Ask(at_s=text.at_s, body=msgspec.Raw(content))

    def _run_engine(self, engine_s: list[float], lap: Lap) -> None:
        lengths = tuple(answer.prompt_tokens for answer in lap.answers)
        engine_s.append(self._engine.cpu_s(lengths, self._effort.max_tokens))

    @staticmethod
    def _frame_row(laps: Sequence[Lap]) -> _Row:
        num_frames = sum(answer.num_frames for lap in laps for answer in lap.answers)
        return frame_row(sum(lap.server_s for lap in laps), sum(lap.cpu_s for lap in laps), num_frames)


@dataclass(frozen=True)
class Processes:
    """Those that run beside the servers."""

    clients: Clients
    engine: EngineAlone


@dataclass(frozen=True)
class _Text:
    """What is asked, and when."""

    user: str
    system: str | None = None
    at_s: float = 0.0


_Asked = list[list[_Text]]
"""What each client asks, one thing after another."""


@contextmanager
def _bench(size: str, effort: Effort) -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="mlxm-bench-") as scratch:
        home = Path(scratch) / "home"
        home.mkdir()
        folder = build(size, Path(scratch) / "models")
        with (
            running(folder, home, (OURS, LM, VLM)) as servers,
            Clients() as clients,
            EngineAlone(folder) as engine,
        ):
            yield Bench(size, effort, servers, Processes(clients, engine))


def _gate(name: str, value: float) -> Gate:
    target, is_most = _TARGETS[name]
    return (Gate.at_most if is_most else Gate.at_least)(name, value, target)


def _faster(laps: Laps, peer: str) -> float:
    """How much more a peer takes than we do, for the same number of tokens."""
    return median_ratio([lap.cpu_s for lap in laps[peer]], [lap.cpu_s for lap in laps[OURS]])


def _shorter(laps: Laps, latency_s: Callable[[Lap], float]) -> float:
    """Our latency as a share of mlx_lm.server's."""
    return median_ratio(map(latency_s, laps[OURS]), map(latency_s, laps[LM]))


def _rows(case: str, laps: Laps) -> list[_Row]:
    return [
        {
            "case": case,
            "measured": name,
            "rounds": len(mine),
            "tokens": mine[0].num_tokens,
            "cpu_s": _two(median(lap.cpu_s for lap in mine)),
            "wall_s": _two(median(lap.wall_s for lap in mine)),
            "tokens_per_cpu_s": _two(median(lap.num_tokens / lap.cpu_s for lap in mine)),
            "ttft_p50_s": round(median(lap.ttft_p50_s for lap in mine), 3),
            "inter_token_p95_ms": _two(median(lap.inter_token_p95_s for lap in mine) * 1e3),
            "cached_tokens": sum(answer.cached_tokens for answer in mine[-1].answers),
            **({} if name == OURS else {"cpu_ratio": _two(_faster(laps, name))}),
        }
        for name, mine in laps.items()
    ]


def _two(value: float) -> float:
    return round(value, 2)
