"""The clients of `benchmarks.server`, in a process of their own, so that what they cost is not counted.

A job is a line of JSON on stdin, its results a line on stdout. Connections are opened one after another before the
first request is sent: mlx_lm.server lets only five wait, and makes the sixth try again a second later.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from itertools import chain
from typing import Self

import msgspec

_LIMIT_S = 900.0
_DATA = b"data: "
_DONE = b"[DONE]"


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """A request: when it is sent, in seconds from the beginning of the job, and its body."""

    at_s: float = 0.0
    body: msgspec.Raw


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What each client asks one server, one request after the other."""

    port: int
    clients: tuple[tuple[Ask, ...], ...]


class Heard(msgspec.Struct, frozen=True, kw_only=True):
    """One answer: when each frame with text came, in seconds from its request, and what the server counted."""

    frames_s: tuple[float, ...]
    num_frames: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    finish_reason: str


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """All answers of a job, client by client."""

    wall_s: float
    answers: tuple[Heard, ...]


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = msgspec.field(default_factory=list)
    usage: _Usage | None = None


class Clients:
    """The process of the clients, from outside."""

    def __init__(self) -> None:
        code = "from benchmarks.server_clients import run_jobs; run_jobs()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()

    def run(self, job: Job) -> Results:
        """Do a job."""
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the clients have no pipes")
        self._process.stdin.write(msgspec.json.encode(job) + b"\n")
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the clients failed")
        return msgspec.json.decode(line, type=Results)


def run_jobs() -> None:
    """Do jobs until stdin ends."""
    for line in sys.stdin.buffer:
        results = asyncio.run(_run(msgspec.json.decode(line, type=Job)))
        sys.stdout.buffer.write(msgspec.json.encode(results) + b"\n")
        sys.stdout.buffer.flush()


async def _run(job: Job) -> Results:
    async with asyncio.timeout(_LIMIT_S):
        clients = [_Client(job.port, asks) for asks in job.clients]
        for client in clients:
            await client.connect()
        began_s = time.perf_counter()
        answers = await asyncio.gather(*(client.ask_all(began_s) for client in clients))
        return Results(wall_s=time.perf_counter() - began_s, answers=tuple(chain.from_iterable(answers)))


class _Client:
    """Asks one thing after another, each on a connection of its own, as mlx_lm.server wants it."""

    def __init__(self, port: int, asks: tuple[Ask, ...]) -> None:
        self._port = port
        self._asks = asks

    async def connect(self) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)

    async def ask_all(self, began_s: float) -> list[Heard]:
        answers: list[Heard] = []
        for ask in self._asks:
            if answers:
                await self.connect()
            await asyncio.sleep(began_s + ask.at_s - time.perf_counter())
            answers.append(await _ask(bytes(ask.body), self._reader, self._writer))
        return answers


async def _ask(body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Heard:
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    sent_s = time.perf_counter()
    try:
        return await _listen(reader, sent_s)
    finally:
        writer.close()


async def _listen(reader: asyncio.StreamReader, sent_s: float) -> Heard:
    """Read a stream to its end; every frame lies in a chunk of its own lines, so that chunks need no undoing."""
    status = await reader.readline()
    if b" 200 " not in status:
        raise RuntimeError(f"{status!r} {await reader.read()!r}")
    frames_s: list[float] = []
    num_frames = 0
    usage = _Usage()
    finish_reason = "none"
    decoder = msgspec.json.Decoder(_Chunk)
    while (line := await reader.readline()) and not line.startswith(_DATA + _DONE):
        if not line.startswith(_DATA):
            continue
        arrived_s = time.perf_counter() - sent_s
        num_frames += 1
        chunk = decoder.decode(line[len(_DATA) :])
        if chunk.usage is not None:
            usage = chunk.usage
        for choice in chunk.choices:
            finish_reason = choice.finish_reason or finish_reason
            if choice.delta.content:
                frames_s.append(arrived_s)
    details = usage.prompt_tokens_details
    return Heard(
        frames_s=tuple(frames_s),
        num_frames=num_frames,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=0 if details is None or details.cached_tokens is None else details.cached_tokens,
        finish_reason=finish_reason,
    )
