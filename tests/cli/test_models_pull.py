import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from mlxm.cli.fetching import LeftRunning, Order, fetch_there
from mlxm.cli.progress_line import ProgressLine, describe
from mlxm.downloads import Progress
from mlxm.remote import Remote, find_server
from mlxm.store.control import read_control
from mlxm.testing.fake_hub import FakeHub, Mishap
from tests.cli.model_cache import Cabinet, Terminal, check_golden, plain

NAME = "mlx-community/Qwen3-4B-4bit"
BOUND_S = 60
WEIGHTS = "*/resolve/*/model.safetensors"


class Typist:
    """A person at a terminal who watches a command and may press Ctrl-C."""

    def __init__(self, *args: str, cwd: Path) -> None:
        self._mine, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (24, 80))
        self.screen = ""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mlxm", *args],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=cwd,
            env={**os.environ, "TERM": "xterm"},
            start_new_session=True,
        )
        os.close(theirs)

    def wait_for(self, text: str) -> None:
        """Look until some words are on the screen."""
        while text not in self.screen:
            self.screen += plain(os.read(self._mine, 65536).decode())

    def press_control_c(self) -> None:
        """What the terminal does then."""
        self._process.send_signal(signal.SIGINT)

    def finish(self) -> int:
        """Read to the end; the exit code."""
        try:
            while chunk := os.read(self._mine, 65536):
                self.screen += plain(chunk.decode())
        except OSError:  # how Linux says that nobody holds the other end
            pass
        os.close(self._mine)
        return self._process.wait(BOUND_S)


@contextmanager
def serving(cabinet: Cabinet) -> Iterator[Remote]:
    """A real server of this person's home."""
    with subprocess.Popen(
        [sys.executable, "-m", "mlxm", "serve", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=dict(os.environ),
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("mlxm is ready")
            server = find_server(cabinet.home)
            assert server is not None
            with server:
                yield server
        finally:
            process.terminate()
            process.wait(BOUND_S)


@pytest.fixture
def held(hub: FakeHub) -> Iterator[threading.Event]:
    """The Hub keeps weights back until this is set."""
    release = threading.Event()
    hub.break_with(Mishap(path=WEIGHTS, method="GET", hold=release, times=None))
    yield release
    release.set()


def until(holds: Callable[[], bool]) -> None:
    """Wait for what nobody tells."""
    deadline = time.monotonic() + BOUND_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.usefixtures("hub")
def test_pulled_model_is_here_verified_and_next_step_is_told(cabinet: Cabinet) -> None:
    """The result is one line; the list knows the model at once."""
    ran = cabinet.run("pull", NAME, "--alias", "small")

    assert ran.code == 0
    assert re.fullmatch(rf"✓ {NAME} @ [0-9a-f]{{8}}  185 KB in \d+ s\n", ran.out)
    assert ran.err == "next: mlxm serve\n"
    assert cabinet.run("ls", "-q", "--filter", "state=on disk").out == f"{NAME}\n"
    assert cabinet.run("verify", "small").code == 0
    assert cabinet.run("pull", "small").out.endswith("185 KB was here already\n")


@pytest.mark.usefixtures("hub")
def test_dry_run_tells_what_would_come_and_fetches_nothing(cabinet: Cabinet) -> None:
    """Files, sizes, the disk's room and whether it would fit into memory."""
    ran = cabinet.run("pull", NAME, "--dry-run")

    assert ran.code == 0
    check_golden("pull.dry-run.txt", ran.out)
    assert re.match(rf"{NAME} @ [0-9a-f]{{8}}: 185 KB to fetch of 185 KB; the disk has .+ free\.\n", ran.err)
    assert ran.err.endswith("It takes 1.4 GB with 8k of context, which fits into the 8.0 GB here.\n")
    assert not cabinet.hub_cache.exists()


@pytest.mark.usefixtures("hub")
def test_dry_run_as_json(cabinet: Cabinet) -> None:
    """The plan, with the verdicts on disk and memory."""
    told = json.loads(cabinet.run("pull", NAME, "--dry-run", "--json", "--include", "*.json").out)

    assert [file["path"] for file in told["files"]] == ["config.json", "tokenizer.json", "tokenizer_config.json"]
    assert (told["has_room"], told["fits"]) == (True, "yes")
    assert told["needed_bytes"] == told["total_bytes"] == sum(file["size_bytes"] for file in told["files"])


def test_model_that_does_not_tell_what_it_is(cabinet: Cabinet, hub: FakeHub) -> None:
    """Without config.json nobody can say what memory it takes."""
    hub.add("a/b", {"model.safetensors": b"x" * 100})

    assert "What memory it would take is not known.\n" in cabinet.run("pull", "a/b", "--dry-run").err


@pytest.mark.usefixtures("hub")
def test_disk_without_room_ends_a_dry_run_with_8(cabinet: Cabinet, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told how much has to stay free."""
    monkeypatch.setattr("mlxm.downloads.downloads.free_bytes", lambda _: 1000)
    ran = cabinet.run("pull", NAME, "--dry-run")

    assert ran.code == 8
    assert ran.err.endswith("That is too little: 1.1 GB are to stay free.\n")


@pytest.mark.usefixtures("hub")
def test_lines_of_json_tell_how_far_it_is(cabinet: Cabinet) -> None:
    """Until it is done; with --json there is only the end."""
    lines = [json.loads(line) for line in cabinet.run("pull", NAME, "--jsonl").out.splitlines()]
    end = json.loads(cabinet.run("pull", NAME, "--json").out)

    assert lines[-1]["state"] == "done"
    assert {line["state"] for line in lines[:-1]} <= {"queued", "checking", "downloading", "verifying"}
    assert (end["state"], end["fetched_bytes"], end["path"]) == ("done", 0, lines[-1]["path"])


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["acme/gone"], 4),
        (["meta/gated"], 6),
        (["torch/qwen3"], 1),
        (["../x"], 2),
        ([NAME, "--include", "*.py"], 2),
        ([NAME, "--alias", "no name"], 2),
        ([NAME, "--revision", "v9"], 4),
        ([NAME, "--detach"], 5),
        ([NAME, "--cancel"], 5),
    ],
)
def test_what_cannot_be_pulled_says_why_by_its_exit_code(cabinet: Cabinet, args: list[str], code: int) -> None:
    """And leaves no model behind."""
    assert cabinet.run("pull", *args).code == code
    assert cabinet.run("ls", "-q").out == "mlxm/tiny\n"


@pytest.mark.parametrize(
    ("alias", "code", "message"),
    [
        ("no name", 2, "is no name of a model"),
        ("mlxm/mine", 9, "belong to mlxm itself"),
        ("acme/half-here", 9, "is the name of a model on this machine"),
        (NAME, 9, "is the name of a model on this machine"),
    ],
)
def test_alias_that_cannot_be_is_refused_before_anything_is_fetched(
    cabinet: Cabinet, hub: FakeHub, alias: str, code: int, message: str
) -> None:
    """What would take long is not begun."""
    cabinet.add("acme/half-here", {"config.json": b"{}"})
    ran = cabinet.run("pull", NAME, "--alias", alias)

    assert (ran.code, message in ran.err) == (code, True), ran.err
    assert hub.requests == []


def test_nothing_is_asked_when_offline(cabinet: Cabinet, hub: FakeHub) -> None:
    """Whether or not a server could."""
    assert cabinet.run("--offline", "pull", NAME).code == 7
    assert hub.requests == []


def test_renamed_model_is_told(cabinet: Cabinet, hub: FakeHub) -> None:
    """It comes under its name of today."""
    hub.rename(NAME, "mlx-community/Qwen3-4B-new")
    ran = cabinet.run("pull", NAME)

    assert ran.out.startswith("✓ mlx-community/Qwen3-4B-new @ ")
    assert ran.err.startswith(f"{NAME} is called mlx-community/Qwen3-4B-new now.\n")


def test_what_is_wrong_with_a_pulled_model_is_told(cabinet: Cabinet, hub: FakeHub) -> None:
    """A part of one, one that mlxm cannot run, one that is too large."""
    assert (
        "It is incomplete as it is: its weights are missing\n" in cabinet.run("pull", NAME, "--include", "*.json").err
    )
    files = {"config.json": b'{"model_type": "x", "model_file": "a.py"}', "tokenizer.json": b"{}"}
    weights = (cabinet.user / "weights").read_bytes()
    hub.add("a/own", {**files, "model.safetensors": weights})
    assert "mlxm cannot run it: " in cabinet.run("pull", "a/own").err
    cabinet.patch.setattr("mlxm.cli.installed.judge", lambda *_: "no")
    assert "It is larger than the memory that models may take here: " in cabinet.run("pull", NAME).err


def test_one_line_moves_and_control_c_ends_it_cleanly(cabinet: Cabinet, held: threading.Event) -> None:
    """No process is left, whole files are kept, and the same command goes on from there."""
    typist = Typist("pull", NAME, cwd=cabinet.user)
    typist.wait_for("fetching 5 files")
    assert "\n" not in typist.screen.strip()
    until(lambda: len(list(cabinet.hub_cache.glob("models--*/snapshots/*/*"))) == 4)
    typist.press_control_c()

    assert typist.finish() == 130
    assert f"Cancelled. Whole files are kept; to go on from there: mlxm pull {NAME}" in typist.screen.replace("\n", "")
    assert cabinet.run("ls", "-q", "--filter", "state=incomplete").out == f"{NAME}\n"
    held.set()
    end = json.loads(cabinet.run("pull", NAME, "--json").out)
    assert (end["state"], end["fetched_bytes"]) == ("done", (cabinet.user / "weights").stat().st_size)


def test_running_server_does_the_work(cabinet: Cabinet, held: threading.Event) -> None:
    """Whoever asks sees the same download; who left it watches it again, and anybody can end it."""
    with serving(cabinet) as server:
        told = json.loads(cabinet.run("pull", NAME, "--detach", "--json").out)
        until(lambda: server.download(told[0]["id"]).state == "downloading")
        watcher = Typist("pull", NAME, cwd=cabinet.user)
        watcher.wait_for("fetching 5 files")
        watcher.press_control_c()
        assert watcher.finish() == 130
        assert "The server goes on with it." in watcher.screen
        assert [each.state for each in server.downloads()] == ["downloading"]

        assert cabinet.run("pull", NAME, "--cancel").out == f"{told[0]['id']}  {NAME} is cancelled\n"
        assert [each.state for each in server.downloads()] == ["cancelled"]
        assert cabinet.run("pull", NAME, "--cancel").code == 4

        owner = Typist("pull", NAME, cwd=cabinet.user)
        owner.wait_for("fetching 5 files")
        owner.press_control_c()
        assert owner.finish() == 130
        assert "Cancelled." in owner.screen
        assert [each.state for each in server.downloads()] == ["cancelled"]

        held.set()
        ran = cabinet.run("pull", NAME)
        assert ran.out.startswith(f"✓ {NAME} @ ")
        assert ran.err == f"next: ask for {NAME} at {server.url}/v1\n"
        answer = httpx.post(
            f"{server.url}/v1/chat/completions",
            json={"model": NAME, "messages": [{"role": "user", "content": "x"}], "max_tokens": 1},
            timeout=BOUND_S,
        )
        assert answer.status_code != 404, answer.text


@pytest.mark.usefixtures("hub")
def test_server_that_keeps_models_elsewhere_says_where(
    cabinet: Cabinet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its environment decides, and what it fetched is no failure."""
    with serving(cabinet):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "elsewhere"))
        ran = cabinet.run("pull", NAME)

    assert ran.code == 0
    assert ran.err.startswith(f"The server keeps it where this command does not look: {cabinet.hub_cache}")


@pytest.mark.usefixtures("hub")
def test_server_can_be_left_out(cabinet: Cabinet) -> None:
    """The command then fetches by itself, and the server finds the model all the same."""
    with serving(cabinet) as server:
        assert cabinet.run("pull", NAME, "--here").code == 0
        assert server.downloads() == ()


def test_download_that_failed_in_the_server_is_an_error_here(cabinet: Cabinet, hub: FakeHub) -> None:
    """With the same words and the same exit code."""
    with serving(cabinet):
        ran = cabinet.run("pull", "acme/gone")

    assert ran.code == 4
    assert ran.err.startswith("error: The Hub has no model acme/gone.\n")
    assert hub.count("/api/models/acme/gone*") == 1


@pytest.mark.usefixtures("hub")
def test_token_that_the_server_lacks_is_told_how_to_use(cabinet: Cabinet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only to who has one: the server's environment decided on its own."""
    way_out = "The server uses its own token; to use this shell's: mlxm pull --here meta/gated"
    with serving(cabinet):
        without = cabinet.run("pull", "meta/gated")
        monkeypatch.setenv("HF_TOKEN", "good")
        ran = cabinet.run("pull", "meta/gated")

        assert (without.code, ran.code) == (6, 6)
        assert without.err.startswith("error: meta/gated is open only to those")
        assert way_out not in without.err
        assert way_out in " ".join(ran.err.split())
        assert cabinet.run("pull", "meta/gated", "--here").code == 0


class Hurried(Remote):
    """The connection of somebody who presses Ctrl-C before the answer to an order is read."""

    def start_download(
        self, name: str, revision: str | None = None, *, include: Sequence[str] = (), exclude: Sequence[str] = ()
    ) -> tuple[Progress, bool]:
        """The server has heard it all the same."""
        super().start_download(name, revision, include=include, exclude=exclude)
        raise KeyboardInterrupt


@pytest.mark.usefixtures("held")
def test_control_c_before_the_server_has_answered(cabinet: Cabinet) -> None:
    """It ends what the command began, and not what others had begun."""
    order = Order(name=NAME, revision=None, include=(), exclude=())
    with serving(cabinet) as server:
        control = read_control(cabinet.home)
        assert control is not None
        with Hurried(control) as hurried:
            with pytest.raises(KeyboardInterrupt) as ended:
                fetch_there(hurried, order, lambda _: None)
            assert ended.type is KeyboardInterrupt
            assert [each.state for each in server.downloads()] == ["cancelled"]

            server.start_download(NAME)
            with pytest.raises(LeftRunning):
                fetch_there(hurried, order, lambda _: None)
            assert [each.is_over for each in server.downloads() if each.state != "cancelled"] == [False]


@pytest.mark.parametrize(
    ("fields", "words", "figures"),
    [
        ({}, "waiting", ("", "", "", "", "")),
        ({"waits_for": "other downloads"}, "waiting for other downloads", ("", "", "", "", "")),
        ({"state": "checking"}, "asking the Hub", ("", "", "", "", "")),
        (
            {"state": "downloading", "total_bytes": 2_300_000_000, "done_bytes": 1_800_000_000, "num_files": 9,
             "rate_bytes_per_s": 84e6, "eta_s": 5.9, "files": ("a\x1bb",)},
            "fetching 9 files",
            ("78%", "1.8/2.3 GB", "84.0 MB/s", "0:00:06", "a�b"),
        ),
        (
            {"state": "downloading", "total_bytes": 2_000_000, "done_bytes": 1000, "num_files": 1},
            "fetching 1 file",
            ("0%", "1.0 KB/2.0 MB", "", "", ""),
        ),
        ({"state": "verifying", "total_bytes": 0}, "verifying", ("100%", "0/0 B", "", "", "")),
        ({"state": "done", "total_bytes": 10}, "done", ("", "", "", "", "")),
    ],
)  # fmt: skip
def test_line_says_how_far_it_is(fields: dict[str, object], words: str, figures: tuple[str, ...]) -> None:
    """Bytes over all files, rate and time left, as far as they are known."""
    told = describe(Progress(id="1", name=NAME, revision="main", **fields))  # type: ignore[arg-type]

    assert told["description"] == words
    assert tuple(told[name] for name in ("percent", "amount", "rate", "left", "file")) == figures


@pytest.mark.parametrize(("columns", "has_name"), [(80, False), (120, True)])
def test_line_names_the_file_where_there_is_room(
    monkeypatch: pytest.MonkeyPatch, columns: int, *, has_name: bool
) -> None:
    """In 80 columns the bar has it."""
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    with ProgressLine(as_lines=False, is_quiet=False) as line:
        line.show(
            Progress(
                id="1",
                name=NAME,
                revision="main",
                state="downloading",
                total_bytes=100,
                done_bytes=50,
                num_files=2,
                files=("model.safetensors",),
            )
        )
    screen = plain(terminal.getvalue())

    assert "50%" in screen
    assert ("model.safetensors" in screen) is has_name
