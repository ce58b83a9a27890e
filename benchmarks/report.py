"""What every benchmark prints: the machine, the versions, what was measured, and whether the gates hold.

A gate is a promise about a measured value. The exit code is 0 when every gate holds, else 1.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

import psutil

PACKAGES = ("mlxm", "mlx", "mlx-lm", "mlx-vlm", "granian", "litestar", "msgspec", "transformers", "typer")

Value = str | int | float


@dataclass(frozen=True, kw_only=True)
class Gate:
    """A measured value, the target it is held to, and whether it meets it."""

    name: str
    value: float
    target: float
    ok: bool

    @classmethod
    def at_most(cls, name: str, value: float, target: float) -> Gate:
        """A gate that holds up to and with its target."""
        return cls(name=name, value=round(value, 4), target=target, ok=value <= target)

    @classmethod
    def at_least(cls, name: str, value: float, target: float) -> Gate:
        """A gate that holds from its target on."""
        return cls(name=name, value=round(value, 4), target=target, ok=value >= target)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What one benchmark found: rows of named values, and the gates over them."""

    rows: tuple[Mapping[str, Value], ...]
    gates: tuple[Gate, ...]


def run_benchmark(subject: str, measure: Callable[[bool], Report], arguments: list[str] | None = None) -> int:
    """Measure (briefly, when `--quick` is given), print, and return the exit code."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{subject}")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="take fewer samples and end within a minute")
    options = parser.parse_args(arguments)
    report = measure(options.quick)
    print(to_json(report) if options.json else to_text(subject, report))
    return 0 if all(gate.ok for gate in report.gates) else 1


def to_json(report: Report) -> str:
    """The report for programs."""
    gates = [asdict(gate) for gate in report.gates]
    whole = {"machine": describe_machine(), "versions": describe_versions(), "rows": report.rows, "gates": gates}
    return json.dumps(whole, indent=2)


def to_text(subject: str, report: Report) -> str:
    """The report for people."""
    machine = ", ".join(f"{name} {value}" for name, value in describe_machine().items())
    rows = ["  ".join(f"{name} {value}" for name, value in row.items()) for row in report.rows]
    gates = [
        f"{'ok  ' if gate.ok else 'FAIL'}  {gate.name}  {gate.value}  (target {gate.target})" for gate in report.gates
    ]
    return "\n".join([f"{subject}: {machine}", "", *rows, "", *gates])


def describe_machine() -> dict[str, Value]:
    """What the figures depend on; the load says how much else was running."""
    return {
        "system": platform.platform(),
        "cpu": _name_cpu(),
        "num_cores": os.cpu_count() or 0,
        "memory_bytes": psutil.virtual_memory().total,
        "load_1min": round(os.getloadavg()[0], 2),
    }


def describe_versions() -> dict[str, str]:
    """Python and the packages that the figures depend on."""
    return {"python": platform.python_version(), **{name: _find_version(name) for name in PACKAGES}}


def median_ratio(numerators: Iterable[float], denominators: Iterable[float]) -> float:
    """The median of the ratios of interleaved rounds: what slows the machine slows both sides of a round."""
    return median(mine / theirs for mine, theirs in zip(numerators, denominators, strict=True))


def _name_cpu() -> str:
    """The processor's name, which Linux keeps in a file of its own."""
    table = Path("/proc/cpuinfo")
    lines = table.read_text(encoding="utf-8").splitlines() if table.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _find_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
