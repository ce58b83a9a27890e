import subprocess
import sys
from typing import Annotated, Literal

import pytest
import typer
from typer.main import get_command

from mlxm.cli.columns import fitting
from mlxm.cli.values import is_of, skip_conversions

app = typer.Typer(add_completion=False, rich_markup_mode=None)
group = typer.Typer(add_completion=False, rich_markup_mode=None)
group.add_typer(app, name="inner")


@app.command()
def trial(
    word: Annotated[str, typer.Argument(help="x")],
    *,
    words: Annotated[list[str] | None, typer.Option(help="x")] = None,
    number: Annotated[int, typer.Option(help="x")] = 3,
    choice: Annotated[Literal["a", "b"], typer.Option(help="x")] = "a",
    maybe: Annotated[float | None, typer.Option(help="x")] = None,
) -> None:
    """Tell what came."""
    typer.echo(repr((word, words, number, choice, maybe)))


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["x"], "('x', None, 3, 'a', None)"),
        (["x", "--words", "p", "--words", "q", "--choice", "b"], "('x', ['p', 'q'], 3, 'b', None)"),
        (["x", "--number", "7", "--maybe", "1.5"], "('x', None, 7, 'a', 1.5)"),
    ],
)
def test_values_are_what_they_would_be_with_conversions(
    args: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that need one still get it."""
    for quick in (False, True):
        command = get_command(app)
        if quick:
            skip_conversions(command)
        command.main(args, standalone_mode=False)
        assert capsys.readouterr().out == f"{told}\n"


@pytest.mark.parametrize("args", [["x", "--number", "seven"], ["x", "--choice", "c"], ["x", "--maybe", "much"]])
def test_mistakes_are_told_as_typer_tells_them(args: list[str]) -> None:
    """To the letter."""
    said = []
    for quick in (False, True):
        command = get_command(app)
        if quick:
            skip_conversions(command)
        with pytest.raises(typer.BadParameter) as caught:
            command.main(args, standalone_mode=False)
        said.append(caught.value.format_message())

    assert said[0] == said[1]


def test_commands_below_a_group_are_quick_too() -> None:
    """And a command that needs no conversion loads nothing for one."""
    command = get_command(group)
    skip_conversions(command)
    program = (
        "import sys\nfrom mlxm.cli.main import main\nmain(['alias', 'ls', '-q'])\nprint('pydantic' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)

    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        ("x", str, True),
        (True, int, False),
        (3, float, False),
        (("a",), list[str], True),
        ((1,), list[str], False),
        ("a", Literal["a"], True),
        ("x", str | None, True),
        ("x", bytes, False),
    ],
)
def test_only_what_is_right_passes(value: object, annotation: object, *, expected: bool) -> None:
    """A yes or no is no number."""
    assert is_of(value, annotation) is expected


@pytest.mark.parametrize(
    ("width", "shown"), [(30, ["NAME", "A", "B"]), (12, ["NAME", "B"]), (9, ["NAME"]), (1, ["NAME"])]
)
def test_expendable_columns_go_in_their_order(width: int, shown: list[str]) -> None:
    """The others stay, also when there is no room for them."""
    assert fitting(["NAME", "A", "B"], [["n", "aaaa", "bbbb"]], ["A", "B"], width) == shown
