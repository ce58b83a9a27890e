import ast
import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LINUX = {"platform_system": "Linux"}
MACOS = {"platform_system": "Darwin"}


def read_metadata(monkeypatch: pytest.MonkeyPatch, backend: str | None = None) -> dict[str, Any]:
    """What a wheel built with MLX_BACKEND set would say of itself."""
    monkeypatch.delenv("MLX_BACKEND", raising=False)
    if backend is not None:
        monkeypatch.setenv("MLX_BACKEND", backend)
    command = [sys.executable, "-m", "hatchling", "metadata"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    metadata: dict[str, Any] = json.loads(done.stdout)
    return metadata


def read_dependencies(monkeypatch: pytest.MonkeyPatch, backend: str | None = None) -> list[Requirement]:
    """The packages that a wheel built with MLX_BACKEND set would ask for."""
    return [Requirement(line) for line in read_metadata(monkeypatch, backend)["dependencies"]]


def mlx_extras(dependencies: list[Requirement], system: dict[str, str]) -> list[set[str]]:
    """The extras of every requirement on MLX itself that counts on one system."""
    return [
        each.extras
        for each in dependencies
        if each.name == "mlx" and each.marker is not None and each.marker.evaluate(system)
    ]


@pytest.mark.parametrize(
    ("chosen", "extra"), [(None, "cpu"), ("cpu", "cpu"), ("cuda12", "cuda12"), ("cuda13", "cuda13")]
)
def test_a_wheel_asks_for_exactly_one_backend(monkeypatch: pytest.MonkeyPatch, chosen: str | None, extra: str) -> None:
    """On Linux it is the one chosen while building, the CPU's by default; on macOS MLX brings its own."""
    dependencies = read_dependencies(monkeypatch, chosen)
    assert mlx_extras(dependencies, LINUX) == [{extra}]
    assert mlx_extras(dependencies, MACOS) == [set()]


def test_an_unknown_backend_is_refused_with_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slip in MLX_BACKEND must not install the wrong library in silence."""
    with pytest.raises(subprocess.CalledProcessError) as failure:
        read_dependencies(monkeypatch, "rocm")
    assert "MLX_BACKEND is 'rocm', but must be one of cpu, cuda12, cuda13" in failure.value.stderr


def test_every_dependency_has_a_lower_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dependency without one may resolve to a release that never worked."""
    unbounded = [each.name for each in read_dependencies(monkeypatch) if ">=" not in str(each.specifier)]
    assert unbounded == []


def test_everything_that_is_imported_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that only another package brings along may be gone with that one's next release."""
    asked_for = {canonicalize_name(each.name) for each in read_dependencies(monkeypatch)}
    providers = packages_distributions()
    unasked = {
        module: providers[module]
        for path in (ROOT / "src").rglob("*.py")
        for module in imported_modules(path)
        if module in providers and not asked_for & {canonicalize_name(name) for name in providers[module]}
    }
    assert unasked.keys() <= {"mlxm"}


def test_constraints_are_plain_pins() -> None:
    """Anything but name==version lines would not be readable by every installer."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9.-]+==[a-z0-9.+!]+", line)] == []


def test_constraints_pin_everything_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """CI tests no version that constraints.txt does not name."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.partition("==")[0] for line in lines}
    tools = [Requirement(line) for line in read_metadata(monkeypatch)["optional-dependencies"]["dev"]]
    assert {each.name for each in [*read_dependencies(monkeypatch), *tools]} - pinned == set()


def test_every_ignored_lint_rule_has_its_reason() -> None:
    """A rule is switched off for a reason that stands beside it."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lint = text[text.index("[tool.ruff.lint]") : text.index("[tool.ruff.lint.pylint]")]
    rules = re.findall(r'^  "[A-Z]+\d+",.*$', lint, re.MULTILINE)
    ruff = tomllib.loads(text)["tool"]["ruff"]["lint"]
    assert len(rules) == len(ruff["ignore"]) + sum(map(len, ruff["per-file-ignores"].values()))
    assert [rule for rule in rules if not re.search(r" # \S.{4,}$", rule)] == []


def test_the_package_of_another_licence_is_imported_late_and_in_one_file() -> None:
    """mlx-embeddings declares GPL-3.0: README.md promises one file, and only when it is needed."""
    importers = [path for path in (ROOT / "src").rglob("*.py") if "mlx_embeddings" in imported_modules(path)]
    assert len(importers) <= 1
    for path in importers:
        assert not any(map(imports_mlx_embeddings, ast.parse(path.read_text(encoding="utf-8")).body))


def imported_modules(path: Path) -> set[str]:
    """The top-level names of everything that a file imports."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add((node.module or "").split(".")[0])
    return modules


def imports_mlx_embeddings(node: ast.AST) -> bool:
    """Whether a statement imports it."""
    if isinstance(node, ast.Import):
        return any(alias.name.split(".")[0] == "mlx_embeddings" for alias in node.names)
    return isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mlx_embeddings"
