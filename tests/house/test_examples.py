from pathlib import Path

import pytest

from docs.examples import Example, find_examples, main, matches


def write_page(folder: Path, text: str) -> str:
    """A page in a file of its own."""
    page = folder / "page.md"
    page.write_text(text)
    return str(page)


def test_commands_and_what_they_print_are_found() -> None:
    """A console block is split at its prompts, a python block is one program, other blocks are left alone."""
    text = "```bash\nrm -rf /\n```\n```console\n$ echo a \\\n  b\na b\n$ true\n```\n```python\nprint(1)\n```\n"
    found = [(example.line, example.command[-1], example.expected) for example in find_examples("p", text)]
    assert found == [(5, "echo a \\\n  b", "a b"), (8, "true", ""), (11, "print(1)\n", None)]


@pytest.mark.parametrize(
    ("expected", "printed"),
    [("a b", "a b\n"), ("a...", "a\nb\nc"), ("...c", "abc  "), ("a...c", "a\n1\nc\n")],
)
def test_dots_stand_for_anything(expected: str, printed: str) -> None:
    """Blanks at the ends of lines do not count either."""
    assert matches(expected, printed)


@pytest.mark.parametrize(("expected", "printed"), [("a ...", "a\n"), ("a", "b\n"), ("a", "a\nb\n"), ("a.c", "abc\n")])
def test_everything_else_has_to_be_the_same(expected: str, printed: str) -> None:
    """A page may leave out, but not invent."""
    assert not matches(expected, printed)


def test_a_page_that_tells_the_truth_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Commands run in an empty home that they share."""
    page = write_page(tmp_path, "```console\n$ echo hello > ~/word\n$ cat ~/word; ls\nhello\nword\n```\n")
    assert main([page]) == 0
    assert "2 examples, all as printed." in capsys.readouterr().out


@pytest.mark.parametrize(
    "block",
    ["console\n$ echo hello\nbye", "console\n$ echo hello", "python\nraise SystemExit(3)", "console\n$ nosuch"],
)
def test_a_page_that_lies_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str], block: str) -> None:
    """The place and the difference are named."""
    assert main([write_page(tmp_path, f"```{block}\n```\n")]) == 1
    assert "page.md:2" in capsys.readouterr().err


def test_what_keeps_running_serves_the_page_and_ends_with_it(tmp_path: Path) -> None:
    """A server is waited for, the default port is a free one, and SIGTERM has to end it well."""
    (tmp_path / "serve.py").write_text(
        "import os, signal, socket\n"
        "s = socket.create_server(('127.0.0.1', int(os.environ['MLXM_SERVER__PORT'])))\n"
        "signal.signal(signal.SIGTERM, lambda *_: os._exit(0))\n"
        "print('up', flush=True)\n"
        "while True: s.accept()[0].sendall(b'hi')\n"
    )
    ask = "import socket; assert socket.create_connection(('127.0.0.1', 6596)).recv(2) == b'hi'"
    text = f"<!-- keeps running -->\n```console\n$ python {tmp_path}/serve.py\nup\n```\n```python\n{ask}\n```\n"
    assert main([write_page(tmp_path, text)]) == 0


@pytest.mark.parametrize("command", ["echo up", "bash -c 'echo up; exec sleep 60'"])
def test_what_keeps_running_has_to_last_and_to_end_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    """A server that ends by itself, or that dies of SIGTERM instead of obeying it, is a failed example."""
    text = f"<!-- keeps running -->\n```console\n$ {command}\nup\n```\n```python\nimport time; time.sleep(0.1)\n```\n"
    assert main([write_page(tmp_path, text)]) == 1
    assert "ended with" in capsys.readouterr().err


def test_titles_lead_to_the_place() -> None:
    """A failure is found by file and line."""
    assert Example("README.md", 7, ("bash", "-c", "mlxm serve\n")).title == "README.md:7: mlxm serve"
