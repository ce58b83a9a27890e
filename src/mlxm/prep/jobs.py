"""The process's loop: one job at a time on the main thread, while a reader thread watches for the parent's end."""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from mlxm import __version__
from mlxm.engine import grammar
from mlxm.errors import MlxmError, ProtocolMismatch
from mlxm.frames import (
    PROTOCOL,
    Decode,
    Decoder,
    Describe,
    Description,
    Encode,
    Fault,
    GrammarVetted,
    Hello,
    JobFailed,
    JobStarted,
    Render,
    Text,
    Tokens,
    ToPrep,
    VetGrammar,
    encode,
)
from mlxm.prep.limits import MemoryGuard, job_over_memory, limit_cpu
from mlxm.prep.options import RenderOptions
from mlxm.prep.renderer import Rendered
from mlxm.prep.shelf import Prompter, Shelf

_LOAD_BYTES: Final = 3 * 1024**3
_ENDING_LENGTH: Final = 500

Job = Render | Encode | Decode | Describe | VetGrammar
Send = Callable[[msgspec.Struct], None]


def serve(sock: socket.socket, memory_bytes: int) -> None:
    """Say hello and answer jobs; the reader ends the process when the parent says so or is gone."""
    inbox: queue.SimpleQueue[Job] = queue.SimpleQueue()

    def send(frame: msgspec.Struct) -> None:
        try:
            sock.sendall(encode(frame))
        except ConnectionError:
            os._exit(0)

    send(
        Hello(
            protocol=PROTOCOL, version=__version__, pid=os.getpid(), capabilities=("render", "encode", "decode", "vet")
        )
    )
    threading.Thread(target=_read, args=(sock, inbox), name="reader", daemon=True).start()
    jobs = Jobs(send, Shelf(), MemoryGuard(), memory_bytes)
    while True:
        jobs.do(inbox.get())


def _read(sock: socket.socket, inbox: queue.SimpleQueue[Job]) -> None:
    decoder = Decoder(ToPrep)
    try:
        while isinstance(frame := decoder.read_blocking(sock), Job):
            inbox.put(frame)
    except ProtocolMismatch as error:
        sys.stderr.write(f"{error}\n")
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)  # at once, whatever the main thread is doing


class Jobs:
    """Does jobs, each within its limits, and answers every one of them."""

    def __init__(self, send: Send, shelf: Shelf, guard: MemoryGuard, memory_bytes: int) -> None:
        self._send = send
        self._shelf = shelf
        self._guard = guard
        self._memory_bytes = memory_bytes

    def do(self, job: Job) -> None:
        """Answer one job with what it asks for, or with JobFailed."""
        limit_cpu()
        try:
            self._send(self._answer(job))
        except MlxmError as error:
            self._send(JobFailed(job=job.job, fault=Fault.of(error)))

    def _answer(self, job: Job) -> Tokens | Text | Description | GrammarVetted:
        if isinstance(job, VetGrammar):
            self._vet(job)
            return GrammarVetted(job=job.job)
        with self._guard.watched(_LOAD_BYTES):
            prompter = self._shelf.take(Path(job.path))
        self._send(JobStarted(job=job.job))
        with self._guard.watched(self._memory_bytes):
            match job:
                case Render():
                    rendered = self._render(prompter, job)
                    ids, ending = prompter.encode(rendered.text), rendered.text[-_ENDING_LENGTH:]
                    return Tokens(job=job.job, ids=ids, ending=ending, unused=rendered.unused)
                case Encode(text=text, suffix=suffix, is_bare=is_bare):
                    return Tokens(job=job.job, ids=prompter.encode_plain(text, suffix=suffix, is_bare=is_bare))
                case Decode(ids=ids):
                    return Text(job=job.job, text=prompter.decode(ids))
                case Describe():
                    return prompter.describe(job.job)

    def _vet(self, job: VetGrammar) -> None:
        grammar.load()
        self._send(JobStarted(job=job.job))
        with self._guard.watched(self._memory_bytes):
            grammar.vet(job.grammar)

    def _render(self, prompter: Prompter, job: Render) -> Rendered:
        options = RenderOptions(
            tools=job.tools,
            thinking=job.thinking,
            template_options=job.template_options,
            continues_final=job.continues_final,
        )
        try:
            with self._guard.refused(self._memory_bytes):
                return prompter.render(job.messages, options)
        except MemoryError as error:
            raise job_over_memory(self._memory_bytes) from error
