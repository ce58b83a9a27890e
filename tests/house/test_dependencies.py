import ast
import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
LINUX = {"platform_system": "Linux"}
MACOS = {"platform_system": "Darwin"}


def read_dependencies(monkeypatch: pytest.MonkeyPatch, backend: str | None) -> list[Requirement]:
    """What a wheel built with MLX_BACKEND set would ask for."""
    monkeypatch.delenv("MLX_BACKEND", raising=False)
    if backend is not None:
        monkeypatch.setenv("MLX_BACKEND", backend)
    command = [sys.executable, "-m", "hatchling", "metadata"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [Requirement(line) for line in json.loads(done.stdout)["dependencies"]]


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
    unbounded = [each.name for each in read_dependencies(monkeypatch, None) if ">=" not in str(each.specifier)]
    assert unbounded == []


def test_constraints_are_plain_pins() -> None:
    """Anything but name==version lines would not be readable by every installer."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9.-]+==[a-z0-9.+!]+", line)] == []


def test_constraints_pin_everything_that_is_asked_for() -> None:
    """CI tests no version that constraints.txt does not name."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.partition("==")[0] for line in lines}
    wanted = [Requirement(line) for line in requires("mlxm") or []]
    here = {each.name.lower() for each in wanted if each.marker is None or each.marker.evaluate({"extra": "dev"})}
    assert here - pinned == set()


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
    importers = set()
    for path in (ROOT / "src").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(map(imports_mlx_embeddings, ast.walk(tree))):
            importers.add(path)
        assert not any(map(imports_mlx_embeddings, tree.body)), f"{path} imports mlx_embeddings when it is imported"
    assert len(importers) <= 1


def imports_mlx_embeddings(node: ast.AST) -> bool:
    """Whether a statement imports it."""
    if isinstance(node, ast.Import):
        return any(alias.name.split(".")[0] == "mlx_embeddings" for alias in node.names)
    return isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mlx_embeddings"
