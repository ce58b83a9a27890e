"""Everything that CI runs: `pip install nox && nox`.

The whole set of dependencies takes 900 MB, so uv links it from its cache, and the sessions that need all of it share
one environment.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import nox

ROOT = Path(__file__).parent
ENVIRONMENTS = ROOT / ".nox"
UV = ENVIRONMENTS / "uv" / "bin" / "uv"
# uv takes the interpreter that runs nox and fetches no other. Wheels for macOS are looked up for the oldest we support.
UV_ENV = {"UV_PYTHON_DOWNLOADS": "never", "UV_NO_PROGRESS": "1", "MACOSX_DEPLOYMENT_TARGET": "14.0"}
PINNED = ("-c", "constraints.txt")
PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md"))]
BENCHMARKS = sorted(path.stem for path in ROOT.glob("benchmarks/*.py") if "__main__" in path.read_text("utf-8"))
PYTHONS = ("3.11", "3.12", "3.13", "3.14")

nox.options.sessions = ["lint", "types", "house", "tests", "wheel", "docs", "bench", "resolve"]
nox.options.error_on_external_run = False


class Target(NamedTuple):
    """A platform on which all dependencies must come as wheels, less those that nobody builds wheels of."""

    name: str
    platform: str
    source_only: tuple[str, ...] = ()


TARGETS = (
    Target("macOS 14 arm64", "aarch64-apple-darwin"),
    Target("Linux x86-64, glibc 2.35", "x86_64-manylinux_2_35"),
    # mlx-vlm needs miniaudio, which publishes no wheel for Linux on arm64: README.md names the C compiler.
    Target("Linux arm64, glibc 2.35", "aarch64-manylinux_2_35", source_only=("miniaudio",)),
)


@nox.session(python=False)
def lint(session: nox.Session) -> None:
    """Check style and layout with ruff."""
    bin_dir = provide(session, "lint", "ruff")
    session.run(f"{bin_dir}/ruff", "check", ".")
    session.run(f"{bin_dir}/ruff", "format", "--check", ".")


@nox.session(python=False)
def types(session: nox.Session) -> None:
    """Check types with mypy, strictly."""
    bin_dir = provide_all(session)
    session.run(f"{bin_dir}/mypy")


@nox.session(python=False)
def house(session: nox.Session) -> None:
    """Check with import-linter that imports keep to the floors."""
    bin_dir = provide(session, "house", "import-linter")
    session.run(f"{bin_dir}/lint-imports", "--no-cache", env={"PYTHONPATH": str(ROOT / "src")})


@nox.session(python=False)
def tests(session: nox.Session) -> None:
    """Run all tests and measure how much of src they reach, child processes included."""
    coverage = f"{provide_all(session)}/coverage"
    data = ENVIRONMENTS / "coverage" / "data"
    data.parent.mkdir(exist_ok=True)
    session.env["COVERAGE_FILE"] = str(data)
    session.run(coverage, "erase")
    chosen = session.posargs or ["--numprocesses", "2", "--dist", "loadfile"]
    session.run(coverage, "run", "-m", "pytest", *chosen)
    if not session.posargs:
        session.run(coverage, "combine", "--quiet")
        session.run(coverage, "report")


@nox.session(python=False)
def wheel(session: nox.Session) -> None:
    """Build the wheel, install it into an empty environment and use it from an empty folder."""
    scratch = ENVIRONMENTS / "wheel"
    shutil.rmtree(scratch, ignore_errors=True)
    built = build_wheel(session, "wheel")
    bin_dir = provide(session, "wheel/env", str(built))
    (scratch / "away").mkdir()
    session.chdir(scratch / "away")
    # -I keeps PYTHONPATH and the current folder out, so that only the installed wheel can be imported.
    session.run(f"{bin_dir}/python", "-I", str(ROOT / "tests/house/smoke.py"), str(built))


@nox.session(python=False)
def docs(session: nox.Session) -> None:
    """Run the examples of README and docs, and check that generated parts are up to date."""
    bin_dir = provide_all(session)
    session.run(f"{bin_dir}/cog", "--check", "--diff", "-I", "docs", *PAGES)
    session.run(f"{bin_dir}/python", "docs/generate_cli.py", "--check")
    session.run(f"{bin_dir}/python", "docs/examples.py", *PAGES)


@nox.session(python=False)
def bench(session: nox.Session) -> None:
    """Check that every benchmark runs to its report; nobody judges a shared machine's figures here."""
    bin_dir = provide_all(session)
    for name in BENCHMARKS:
        command = (f"{bin_dir}/python", "-m", f"benchmarks.{name}", "--quick", "--json")
        report = json.loads(session.run(*command, silent=True, stderr=None, success_codes=[0, 1]) or "")
        if report.keys() != {"machine", "versions", "rows", "gates"}:
            session.error(f"benchmarks.{name} printed {sorted(report)}")
        for gate in report["gates"]:
            session.log(f"{gate['name']}: {gate['value']} (target {gate['target']})")


@nox.session(python=False)
def resolve(session: nox.Session) -> None:
    """Check that the dependencies resolve on every supported platform and Python: wheels only, one MLX backend."""
    wheels = {backend: build_wheel(session, "resolve", backend) for backend in ("cpu", "cuda13")}
    jobs = [(target, python, "cpu") for target in TARGETS for python in PYTHONS]
    jobs += [(target, PYTHONS[-1], "cuda13") for target in TARGETS if "manylinux" in target.platform]
    with ThreadPoolExecutor(4) as threads:
        findings = list(threads.map(lambda job: resolve_for(job[0], job[1], wheels[job[2]]), jobs))
    for (target, python, backend), finding in zip(jobs, findings, strict=True):
        session.log(f"{target.name}, Python {python}, {backend}: {finding.said}")
    if not all(finding.is_good for finding in findings):
        session.error("The dependencies do not resolve everywhere.")


@nox.session(python=False)
def pin(session: nox.Session) -> None:
    """Write constraints.txt anew: today's release of everything that CI installs."""
    built = build_wheel(session, "resolve", "cpu")
    resolved = compile_wheel(f"{built}[dev]", "--python", sys.executable)
    if resolved.returncode:
        session.error(resolved.stderr)
    (ROOT / "constraints.txt").write_text(resolved.stdout, encoding="utf-8")


class Finding(NamedTuple):
    """Whether one resolution is as it should be, and the words for it."""

    is_good: bool
    said: str


def resolve_for(target: Target, python: str, built: Path) -> Finding:
    """Resolve a wheel's dependencies for one platform and one Python."""
    sources = [part for package in target.source_only for part in ("--no-binary", package)]
    resolved = compile_wheel(str(built), "--python-platform", target.platform, "--python-version", python, *sources)
    if resolved.returncode:
        return Finding(is_good=False, said=resolved.stderr)
    names = [line.partition("==")[0] for line in resolved.stdout.splitlines()]
    backends = [name for name in names if name.startswith(("mlx-cpu", "mlx-cuda", "mlx-metal"))]
    exceptions = f", from source: {', '.join(target.source_only)}" if target.source_only else ""
    return Finding(is_good=len(backends) == 1, said=f"{len(names)} packages, {' and '.join(backends)}{exceptions}")


def compile_wheel(requirement: str, *options: str) -> subprocess.CompletedProcess[str]:
    """What a wheel of ours brings along, as name==version lines."""
    bare = ("--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-package", "mlxm")
    command = [str(UV), "pip", "compile", "--quiet", *bare, "--only-binary", ":all:", *options, "-"]
    environment = os.environ | UV_ENV
    return subprocess.run(command, input=requirement, env=environment, capture_output=True, text=True, check=False)


def build_wheel(session: nox.Session, folder: str, backend: str = "cpu") -> Path:
    """Build the wheel that asks for one MLX backend into an empty folder."""
    out = ENVIRONMENTS / folder / backend
    shutil.rmtree(out, ignore_errors=True)
    options = ("--wheel", "--quiet", "--out-dir", str(out), "--build-constraints", "constraints.txt")
    uv(session, "build", *options, str(ROOT), env={"MLX_BACKEND": backend})
    (built,) = out.glob("*.whl")
    return built


def provide_all(session: nox.Session) -> Path:
    """Provide the environment in which mlxm is editable and everything is installed."""
    return provide(session, "all", "-e", ".[dev]")


def provide(session: nox.Session, name: str, *packages: str) -> Path:
    """Make or update an environment, put it first on PATH, and name its bin folder."""
    environment = ENVIRONMENTS / name
    if not (environment / "bin" / "python").exists():
        uv(session, "venv", "--quiet", "--python", sys.executable, str(environment))
    uv(session, "pip", "install", "--quiet", "--python", str(environment), *PINNED, *packages)
    session.env["PATH"] = f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
    session.env["VIRTUAL_ENV"] = str(environment)
    return environment / "bin"


def uv(session: nox.Session, *args: str, env: Mapping[str, str] = MappingProxyType({})) -> None:
    """Run uv, after installing it into an environment of its own (virtualenv comes with nox)."""
    if not UV.exists():
        session.run(sys.executable, "-m", "virtualenv", "--quiet", str(ENVIRONMENTS / "uv"))
        session.run(str(UV.with_name("pip")), "install", "--quiet", *PINNED, "uv")
    session.run(str(UV), *args, env=UV_ENV | dict(env), silent=True)
