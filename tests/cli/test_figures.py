from pathlib import Path

import pytest

from mlxm.cli.figures import count_of, show_age, show_bytes, show_count, show_duration, show_path, show_tokens
from mlxm.cli.machine import budget_of, read_machine

GB = 1000**3


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 KB"),
        (999_499, "999 KB"),
        (999_600, "1.0 MB"),
        (123_456_789, "123 MB"),
        (2_300_000_000, "2.3 GB"),
        (10**16, "10000 TB"),
    ],
)
def test_sizes_are_those_of_the_hub(num_bytes: int, text: str) -> None:
    """Powers of a thousand, and nothing rounded up to a thousand."""
    assert show_bytes(num_bytes) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0"), (494_032_768, "494M"), (4_022_468_096, "4.0B"), (70, "70")])
def test_numbers_of_parameters_are_short(count: int, text: str) -> None:
    """As people name models."""
    assert show_count(count) == text


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (0, "0"), (512, "512"), (2048, "2k"), (32768, "32k"), (32000, "32k"), (128000, "128k"), (131072, "128k"),
        (40960, "40k"), (262144, "256k"), (1048576, "1M"), (1_000_000, "1M"), (10_485_760, "10M"), (65535, "65535"),
        (1025, "1025"), (1500 * 1024, "1536k"),
    ],
)  # fmt: skip
def test_contexts_are_told_as_model_cards_do(tokens: int, text: str) -> None:
    """In whole units, whichever thousand is meant; otherwise as they are."""
    assert show_tokens(tokens) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "just now"), (59, "just now"), (60, "1m ago"), (7199, "1h ago"), (86_400, "1d ago"), (8 * 86_400, "1w ago"),
     (366 * 86_400, "1y ago")],
)  # fmt: skip
def test_ages_have_one_unit(seconds: float, text: str) -> None:
    """The largest that fits; a clock that was set back does no harm."""
    assert show_age(seconds) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (27, "27 s"), (185, "3 min 5 s")])
def test_durations_are_told_in_words(seconds: float, text: str) -> None:
    """Minutes from one minute on."""
    assert show_duration(seconds) == text


def test_paths_are_told_as_people_write_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the home folder on."""
    monkeypatch.setenv("HOME", "/home/me")
    assert show_path(Path("/home/me/models")) == "~/models"
    assert show_path(Path("/home/me")) == "/home/me"
    assert show_path(Path("/srv/models")) == "/srv/models"


def test_nouns_agree_with_their_numbers() -> None:
    """One is one."""
    assert [count_of(number, "model") for number in (0, 1, 2)] == ["0 models", "1 model", "2 models"]


@pytest.mark.parametrize(
    ("total", "budget"), [(4, 2), (8, 4), (16, 12), (32, 25.6), (36, 28.8), (64, 51.2), (512, 409.6)]
)
def test_budget_leaves_the_system_its_part(total: float, budget: float) -> None:
    """A fifth, at least 4 GB, and never more than half."""
    assert budget_of(int(total * GB)) == int(budget * GB)


def test_machine_is_read_as_it_is() -> None:
    """Its time, and a budget below its memory."""
    here = read_machine()
    assert here.now > 1_700_000_000
    assert here.budget_bytes > 0
