import json
import threading

import pytest

from mlxm.catalog.hub import Dropped, Found, Row
from mlxm.cli.found import Finds
from mlxm.cli.main import main
from mlxm.testing.fake_hub import FakeHub, Mishap
from tests.cli.model_cache import HERE, Cabinet, Terminal, check_golden, plain, widest

QWEN, VISION, PLAIN = "mlx-community/Qwen3-4B-4bit", "mlx-community/Qwen3-VL-8B-8bit", "someone/qwen3-bf16-mlx"


@pytest.mark.usefixtures("hub")
def test_piped_search_has_the_final_rows(cabinet: Cabinet) -> None:
    """Complete, aligned and whole; models that are not for MLX are not among them."""
    ran = cabinet.run("search", "qwen3")

    assert ran.code == 0
    check_golden("search.piped.txt", ran.out)
    assert ran.err == f"3 models. Get one with: mlxm pull {QWEN}\n"


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("columns", [80, 120])
def test_search_on_a_terminal_fits_its_width(cabinet: Cabinet, columns: int) -> None:
    """What stands at the end, after what moved before it."""
    screen = cabinet.show("search", "qwen3", columns=columns)
    final = screen[screen.rindex("MODEL ") :]

    check_golden(f"search.{columns}.txt", final)
    assert widest(final.splitlines()) <= columns


def test_rows_appear_before_they_are_complete(cabinet: Cabinet, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal shows the names at once, with gaps that fill in."""
    release = threading.Event()
    hub.break_with(Mishap(path="*/resolve/*", hold=release, times=None))
    seen = threading.Event()

    class Watched(Terminal):
        def write(self, text: str) -> int:
            written = super().write(text)
            if "…" in self.getvalue() and VISION in self.getvalue():
                seen.set()
                release.set()
            return written

    terminal = Watched()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["search", "qwen3"]) == 0

    assert seen.is_set()
    assert "…" not in plain(terminal.getvalue()).rpartition("MODEL ")[2]
    assert cabinet.hub_cache.exists() is False


@pytest.mark.usefixtures("hub")
def test_json_has_every_field_of_a_row(cabinet: Cabinet) -> None:
    """One array, with whether each fits into this machine."""
    found = json.loads(cabinet.run("search", "qwen3", "--json").out)

    assert [each["name"] for each in found] == [QWEN, VISION, PLAIN]
    assert (found[0]["downloads"], found[0]["likes"], found[0]["tags"]) == (123_456, 99, ["mlx", "safetensors"])
    assert (found[0]["characteristics"]["family"], found[0]["fits"], found[0]["is_filled"]) == ("qwen3", True, True)


@pytest.mark.usefixtures("hub")
def test_lines_of_json_stream_what_happens(cabinet: Cabinet) -> None:
    """A row when it is found, and again when it is complete."""
    events = [json.loads(line) for line in cabinet.run("search", "qwen3", "--jsonl").out.splitlines()]

    assert [each["type"] for each in events] == ["found"] * 3 + ["filled"] * 3
    assert events[0]["row"]["name"] == QWEN


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["qwen3", "--author", "someone"], [PLAIN]),
        (["qwen3", "--quant", "8bit"], [VISION]),
        (["qwen3", "--quant", "bf16"], [PLAIN]),
        (["--cap", "vision", "--cap", "text"], [VISION]),
        (["qwen3", "--family", "qwen3", "--max-size", "1MB", "--cap", "text"], [QWEN, VISION, PLAIN]),
        (["--max-size", "1KB"], []),
        (["qwen3", "--fits", "--limit", "1"], [QWEN]),
        (["qwen3", "--sort", "likes"], [QWEN, VISION, PLAIN]),
    ],
)
def test_filters_choose_by_what_a_model_is(cabinet: Cabinet, args: list[str], expected: list[str]) -> None:
    """All of them at once."""
    assert cabinet.run("search", "-q", *args).out.split() == expected


@pytest.mark.usefixtures("hub")
def test_model_of_which_a_filter_cannot_tell_stays_and_is_named(cabinet: Cabinet) -> None:
    """What is closed cannot be looked into; the reason is told."""
    ran = cabinet.run("search", "gated", "--cap", "reasoning")

    assert "meta/gated" in ran.out
    assert "Of 1 model the filters cannot tell: reasoning.\n" in ran.err
    assert "meta/gated: meta/gated is open only to those who accepted its terms.\n" in ran.err


@pytest.mark.usefixtures("hub")
def test_nothing_found_is_no_failure(cabinet: Cabinet) -> None:
    """It is said on stderr."""
    ran = cabinet.run("search", "no-such-thing")

    assert (ran.code, ran.out, ran.err) == (0, "", "Nothing was found. Try fewer words or filters.\n")


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("args", [["--max-size", "big"], ["--cap", "flying"], ["--limit", "0"], ["--sort", "size"]])
def test_search_without_sense_is_refused(cabinet: Cabinet, args: list[str]) -> None:
    """Before anything is asked, or by the search itself."""
    assert cabinet.run("search", "q", *args).code == 2


def test_without_a_network_the_search_says_so(cabinet: Cabinet, hub: FakeHub) -> None:
    """By choice or not, with the exit code for it."""
    assert cabinet.run("--offline", "search", "q").code == 7
    assert hub.requests == []


def test_rows_that_turn_out_unwanted_go() -> None:
    """What a filter drops later was shown before."""
    finds = Finds("downloads", HERE)
    for name, downloads in (("a/b", 1), ("c/d", 2)):
        finds.take(Found(Row(name=name, downloads=downloads, likes=0, tags=(), gated=False, last_modified=None)))
    assert [row.name for row in finds.rows()] == ["c/d", "a/b"]
    finds.take(Dropped("c/d", "size"))

    assert [row.name for row in finds.rows()] == ["a/b"]
