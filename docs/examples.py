"""Runs the examples of Markdown pages and compares what they print: python docs/examples.py README.md ...

A `console` block holds commands after `$ ` and what they print, where `...` stands for anything. A `python` block must
end well. All blocks of a page share one empty home. `<!-- keeps running -->` before a block leaves its command running
until the page ends; on such a page the default port is replaced by a free one.
"""

from __future__ import annotations

import difflib
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

DEFAULT_PORT = "6596"
BOUND_S = 120
POLL_S = 0.05
KEEPS_RUNNING = "<!-- keeps running -->"
_BLOCK = re.compile(
    rf"(?P<background>{KEEPS_RUNNING}\s*)?^```(?P<kind>console|python)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL
)


class ExampleFailed(Exception):
    """An example did not do what its page says."""


@dataclass(frozen=True)
class Example:
    """One command or program, and what its page says that it prints; None when the page does not say."""

    page: str
    line: int
    command: tuple[str, ...]
    expected: str | None = None
    keeps_running: bool = False

    @property
    def title(self) -> str:
        """The example as a reader finds it."""
        return f"{self.page}:{self.line}: {self.command[-1].splitlines()[0]}"


@dataclass(frozen=True)
class Place:
    """Where the examples of one page run."""

    folder: Path
    environment: dict[str, str]


def find_examples(page: str, text: str) -> list[Example]:
    """The examples of one page, in order."""
    examples: list[Example] = []
    for block in _BLOCK.finditer(text):
        line = text.count("\n", 0, block.start("body")) + 1
        if block["kind"] == "python":
            examples.append(Example(page, line, (sys.executable, "-c", block["body"])))
        else:
            examples.extend(_split_console(page, line, block["body"], keeps_running=block["background"] is not None))
    return examples


def _split_console(page: str, line: int, body: str, *, keeps_running: bool) -> Iterator[Example]:
    """The commands of a console block; a command goes on where its line ends with a backslash."""
    start = line
    for part in re.split(r"^(?=\$ )", body, flags=re.MULTILINE):
        if part.startswith("$ "):
            command, _, expected = re.sub(r"\\\n", "\\\\\0", part[2:]).partition("\n")
            command = command.replace("\\\0", "\\\n")
            yield Example(page, start, ("bash", "-c", command), expected.strip("\n"), keeps_running)
        start += part.count("\n")


def matches(expected: str, printed: str) -> bool:
    """Whether text is as expected, where `...` stands for anything."""
    pattern = ".*?".join(re.escape(part) for part in expected.split("..."))
    return re.fullmatch(pattern, _strip_trailing(printed), re.DOTALL) is not None


def _strip_trailing(text: str) -> str:
    """Text without the blanks that no reader sees."""
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())


def run_page(page: Path) -> int:
    """Run all examples of a page; the number of them."""
    text = page.read_text(encoding="utf-8")
    port = _free_port() if KEEPS_RUNNING in text else DEFAULT_PORT
    examples = find_examples(str(page), text.replace(DEFAULT_PORT, port))
    with tempfile.TemporaryDirectory(prefix="mlxm-examples-") as folder, ExitStack() as running:
        place = Place(Path(folder), _environment(Path(folder)))
        if port != DEFAULT_PORT:
            place.environment["MLXM_SERVER__PORT"] = port
        for example in examples:
            print(example.title, flush=True)
            if example.keeps_running:
                running.enter_context(_left_running(example, place))
            else:
                _run_to_end(example, place)
    return len(examples)


def _environment(folder: Path) -> dict[str, str]:
    """An environment without the owner's settings, in which our own programs come first."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLXM_", "HF_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return kept | {"HOME": str(folder), "PATH": path, "COLUMNS": "80", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1"}


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def _run_to_end(example: Example, place: Place) -> None:
    """Run an example that ends by itself."""
    done = subprocess.run(
        example.command,
        cwd=place.folder,
        env=place.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=BOUND_S,
        check=False,
    )
    if example.expected is None and done.returncode != 0:
        raise ExampleFailed(f"{example.title}\nended with {done.returncode}:\n{done.stdout}")
    if example.expected is not None and not matches(example.expected, done.stdout):
        raise ExampleFailed(_describe_difference(example, done.stdout))


@contextmanager
def _left_running(example: Example, place: Place) -> Iterator[None]:
    """Start an example, wait until it has printed what it should, and end it politely afterwards."""
    log = place.folder / f"output-{example.line}"
    with log.open("wb") as output:
        command = ("bash", "-c", f"exec {example.command[-1]}")
        process = subprocess.Popen(
            command, cwd=place.folder, env=place.environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        _await_output(example, process, log)
        yield
        if process.poll() is not None:
            raise ExampleFailed(f"{example.title}\nended with {process.returncode}:\n{log.read_text()}")
    finally:
        process.terminate()
        code = process.wait(BOUND_S)
    if code != 0:
        raise ExampleFailed(f"{example.title}\nended with {code}:\n{log.read_text()}")


def _await_output(example: Example, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for what the page says; what a program prints later is not on the page."""
    deadline = time.monotonic() + BOUND_S
    while not matches(f"{example.expected}...", log.read_text()):
        if process.poll() is not None or time.monotonic() > deadline:
            raise ExampleFailed(_describe_difference(example, log.read_text()))
        time.sleep(POLL_S)


def _describe_difference(example: Example, printed: str) -> str:
    """What the page says against what was printed."""
    expected, real = (example.expected or "").splitlines(), _strip_trailing(printed).splitlines()
    return "\n".join([example.title, *difflib.unified_diff(expected, real, "page", "printed", lineterm="")])


def main(pages: list[str]) -> int:
    """Run the pages named; 1 when an example failed."""
    try:
        count = sum(run_page(Path(page)) for page in pages)
    except ExampleFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    print(f"{count} examples, all as printed.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
