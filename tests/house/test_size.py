import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 60
MAX_README_LINES = 150
_LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def count_lines(path: Path) -> int:
    """The lines of a file."""
    return len(path.read_text(encoding="utf-8").splitlines())


def test_no_source_file_is_too_long_for_one_sitting() -> None:
    """A file past 450 lines holds more than one idea."""
    assert {str(path): count_lines(path) for path in SOURCES if count_lines(path) > MAX_FILE_LINES} == {}


def test_no_function_is_too_long_for_one_screen() -> None:
    """A function past 60 lines hides its parts."""
    long = {}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                length = node.end_lineno - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    long[f"{path}:{node.lineno} {node.name}"] = length
    assert long == {}


def test_readme_is_short() -> None:
    """README.md stays under 150 lines."""
    assert count_lines(ROOT / "README.md") < MAX_README_LINES


def test_links_between_pages_lead_somewhere() -> None:
    """A link to a file of ours names one that exists."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
    links = [(page, target) for page in pages for target in _LINK.findall(page.read_text(encoding="utf-8"))]
    assert len(links) > 0
    assert [f"{page.name}: {target}" for page, target in links if not (page.parent / target).exists()] == []
