from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlxm import __version__
from mlxm.frames import PROTOCOL, Decoder, FromPrep, Hello, JobFailed, JobStarted, Render, Shutdown, Tokens, encode
from mlxm.prep.limits import EXIT_OVER_MEMORY
from mlxm.prep.shelf import Prompter
from mlxm.types import Message

MakeModel = Callable[..., Path]
Say = Callable[..., tuple[Message, ...]]

MIB = 1024 * 1024
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


class Prep:
    """A prep process and this side of its socket."""

    def __init__(self, memory_bytes: int) -> None:
        self.sock, theirs = socket.socketpair()
        self.sock.settimeout(30)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlxm.prep", "--fd", str(theirs.fileno()), "--memory-bytes", str(memory_bytes)],
                pass_fds=[theirs.fileno()],
                stderr=subprocess.PIPE,
                text=True,
            )
        self._decoder = Decoder(FromPrep)

    def read(self) -> Any:
        """The next frame, None at the end of the stream."""
        return self._decoder.read_blocking(self.sock)

    def ask(self, folder: Path, messages: tuple[Message, ...], job: int = 1) -> list[Any]:
        """All frames that answer one job."""
        self.sock.sendall(encode(Render(job=job, path=str(folder), messages=messages)))
        frames = [self.read()]
        while isinstance(frames[-1], JobStarted):
            frames.append(self.read())
        return frames

    def end(self) -> tuple[int, str]:
        """How the process ended, and its last words."""
        _, words = self.process.communicate(timeout=30)
        return self.process.returncode, words


@pytest.fixture
def start() -> Iterator[Callable[..., Prep]]:
    """Start prep processes, and end them with the test."""
    with contextlib.ExitStack() as stack:

        def run(memory_bytes: int = 256 * MIB) -> Prep:
            prep = Prep(memory_bytes)
            assert prep.process.stderr is not None
            stack.callback(prep.process.stderr.close)
            stack.callback(prep.process.wait, 30)
            stack.callback(prep.process.kill)
            stack.callback(prep.sock.close)
            return prep

        yield run


@pytest.fixture
def prep(start: Callable[..., Prep]) -> Prep:
    """A process that has said hello."""
    process = start()
    hello = process.read()
    assert (
        Hello(
            protocol=PROTOCOL,
            version=__version__,
            pid=process.process.pid,
            capabilities=("render", "encode", "decode", "vet"),
        )
        == hello
    )
    return process


def test_a_job_is_answered_with_ids(prep: Prep, make_model: MakeModel, conversation: tuple[Message, ...]) -> None:
    """First that its time has begun, then the ids."""
    folder = make_model()
    prompter = Prompter(folder)
    text = prompter.render(conversation).text
    expected = Tokens(job=7, ids=prompter.encode(text), ending=text[-500:])
    assert [JobStarted(job=7), expected] == prep.ask(folder, conversation, job=7)


def test_a_failed_job_is_answered_and_the_next_one_works(prep: Prep, make_model: MakeModel, say: Say) -> None:
    """The process outlives what its jobs get wrong."""
    started, failed = prep.ask(make_model("{{ raise_exception('no') }}"), say(("user", "x")))
    assert isinstance(started, JobStarted)
    assert isinstance(failed, JobFailed)
    assert failed.fault.code == "invalid_request"
    (broken,) = prep.ask(make_model(bos_token=7), say(("user", "x")))
    assert broken.fault.code == "model_broken"
    assert isinstance(prep.ask(make_model(), say(("user", "x")))[-1], Tokens)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel refuses memory on Linux only")
@pytest.mark.parametrize(
    "bomb",
    [
        "{{ 'a' * 10 ** 9 }}",
        "{{ 'a'.ljust(10 ** 9) }}",
        "{{ '%999999999d' % 1 }}",
        "{% set box = namespace(x='a') %}{% for n in range(99) %}{% set box.x = box.x + box.x %}{% endfor %}",
        "{% set box = namespace(x=[0]) %}{% for n in range(99) %}{% set box.x = box.x + box.x %}{% endfor %}",
    ],
)
def test_a_template_that_takes_too_much_memory_is_refused(
    prep: Prep, make_model: MakeModel, say: Say, bomb: str
) -> None:
    """Python meets a MemoryError and the process goes on, whole."""
    failed = prep.ask(make_model(bomb), say(("user", "x")))[-1]
    assert failed.fault.code == "invalid_request"
    assert "uses too much memory: more than 256 MiB" in failed.fault.message
    assert isinstance(prep.ask(make_model(), say(("user", "x")))[-1], Tokens)


def test_a_prompt_that_takes_too_much_memory_ends_the_process(
    start: Callable[..., Prep], make_model: MakeModel, say: Say
) -> None:
    """The tokenizer cannot be refused memory, so the watch ends the process, with a last word and its own code."""
    prep = start(16 * MIB)
    prep.read()
    frames = prep.ask(make_model(), say(("user", "word " * 400_000)))
    assert frames[-1] is None
    code, words = prep.end()
    assert code == EXIT_OVER_MEMORY
    assert "more memory than it may" in words


def test_shutdown_ends_it_with_zero(prep: Prep) -> None:
    """It leaves as it is asked to, and says nothing."""
    prep.sock.sendall(encode(Shutdown()))
    assert prep.end() == (0, "")


def test_the_end_of_the_stream_ends_it_at_once_in_the_middle_of_a_job(
    prep: Prep, make_model: MakeModel, say: Say
) -> None:
    """A parent that was killed leaves nothing behind that computes."""
    prep.sock.sendall(encode(Render(job=1, path=str(make_model(ENDLESS)), messages=say(("user", "x")))))
    assert isinstance(prep.read(), JobStarted)
    before = time.monotonic()
    prep.sock.close()
    assert prep.end() == (0, "")
    assert time.monotonic() - before < 10  # the template would go on for minutes


def test_a_parent_that_goes_before_the_answer_makes_no_noise(prep: Prep, make_model: MakeModel, say: Say) -> None:
    """The answer has nowhere to go, and that is all right."""
    prep.sock.sendall(encode(Render(job=1, path=str(make_model()), messages=say(("user", "x")))))
    prep.sock.close()
    assert prep.end() == (0, "")


def test_what_is_no_frame_ends_it_with_a_word(prep: Prep) -> None:
    """Guessing on would answer the wrong job."""
    prep.sock.sendall(b"\x00\x00\x00\x02\xc1\xc1")
    code, words = prep.end()
    assert code == 1
    assert words == "A frame could not be read.\n"


def test_it_leaves_no_core_and_computes_for_a_limited_time(prep: Prep, make_model: MakeModel, say: Say) -> None:
    """A dump would hold people's prompts; an orphan inside one endless call would hold a processor core."""
    prep.ask(make_model(), say(("user", "x")))
    limits = Path(f"/proc/{prep.process.pid}/limits")
    if not limits.exists():
        pytest.skip("limits of another process can be read on Linux only")
    rows = {row[:26].strip(): row[26:].split() for row in limits.read_text().splitlines()}
    assert rows["Max core file size"][0] == "0"
    assert 120 <= int(rows["Max cpu time"][0]) < 180


def test_killing_it_is_seen_at_the_other_end(prep: Prep) -> None:
    """End-of-file is how the parent learns of it."""
    os.kill(prep.process.pid, signal.SIGKILL)
    assert prep.read() is None
