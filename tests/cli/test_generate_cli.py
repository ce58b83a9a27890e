import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from mlxm.cli.main import COMMANDS

SCRIPT = Path(__file__).parents[2] / "docs" / "generate_cli.py"


@pytest.fixture
def generator() -> ModuleType:
    """The script that writes the pages."""
    spec = importlib.util.spec_from_file_location("generate_cli", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_say_what_the_commands_say(generator: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """The pages in the tree are up to date."""
    assert generator.main(["--check"]) == 0, capsys.readouterr().err


def test_reference_has_every_command_and_option(generator: ModuleType, tmp_path: Path) -> None:
    """Nothing that can be typed is missing from the reference."""
    assert generator.main([], tmp_path) == 0
    text = (tmp_path / "cli.md").read_text(encoding="utf-8")

    sections = re.findall(r"^##+ (.+)$", text, re.MULTILINE)
    assert sections[0] == "mlxm"
    assert [f"mlxm {name}" for name in COMMANDS] == [name for name in sections if name.count(" ") == 1]
    assert "mlxm config set" in sections
    assert "--json" in text


def test_help_in_the_reference_is_what_a_terminal_shows(generator: ModuleType, tmp_path: Path) -> None:
    """The page and an 80-column terminal agree to the letter."""
    generator.main([], tmp_path)

    golden = Path(__file__).with_name("help.txt").read_text(encoding="utf-8")
    assert f"## mlxm\n\n```text\n{golden}```\n" in (tmp_path / "cli.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", ["cli.md", "exit-codes.md"])
def test_check_names_the_page_that_differs(
    page: str, generator: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A page that was edited by hand, or is missing, fails the check."""
    generator.main([], tmp_path)
    assert generator.main(["--check"], tmp_path) == 0

    (tmp_path / page).write_text("something else", encoding="utf-8")
    assert generator.main(["--check"], tmp_path) == 1
    assert f"{tmp_path / page} is not what" in capsys.readouterr().err

    (tmp_path / page).unlink()
    assert generator.main(["--check"], tmp_path) == 1
