"""The server's side of prep: conversations go in, token ids come out, and no template can hold anything up.

One process does one job at a time; a job that breaks its limits costs that process its life and nobody else anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from mlxm.child import Child
from mlxm.errors import Draining, InvalidRequest, MlxmError, Overloaded, TimedOut, WorkerDied
from mlxm.frames import FromPrep, JobFailed, JobStarted, Render, Tokens
from mlxm.prep.limits import EXIT_OVER_MEMORY, job_over_memory, load_over_memory
from mlxm.types import Message

_NAME: Final = "The process that prepares prompts"
_STOP_S: Final = 1.0
_RETRY_S: Final = 1.0

OnDeath = Callable[[MlxmError], None]


class PrepLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What one job may use, not counting the reading of a tokenizer, and how many may wait."""

    timeout_s: float = 2.0
    memory_bytes: int = 256 * 1024**2
    load_timeout_s: float = 30.0
    max_waiting: int = 1024


class _Job:
    def __init__(self, path: Path, messages: Sequence[Message]) -> None:
        self.path = str(path)
        self.messages = tuple(messages)
        self.answer: asyncio.Future[tuple[int, ...]] = asyncio.get_running_loop().create_future()

    def succeed(self, ids: tuple[int, ...]) -> None:
        if not self.answer.done():  # its caller may have gone
            self.answer.set_result(ids)

    def fail(self, error: MlxmError) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class Prep:
    """Renders and tokenizes conversations in a process of its own, first come, first served."""

    def __init__(self, limits: PrepLimits, on_death: OnDeath | None = None) -> None:
        self._limits = limits
        self._on_death = on_death
        self._unready: str | None = f"{_NAME} is starting."
        self._has_tried = asyncio.Event()
        self._waiting: asyncio.Queue[_Job] = asyncio.Queue()
        self._numbers = itertools.count()
        self._process: _Process | None = None
        self._runner: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to start the process; the first render waits for it."""
        if self._runner is None:
            self._runner = asyncio.create_task(self._run(), name="prep")

    def ready(self) -> str | None:
        """Why prompts cannot be prepared now, or None; while a process is replaced, prompts just wait a little."""
        return self._unready

    async def tried(self) -> None:
        """Wait until the first process has said hello, or could not be started."""
        await self._has_tried.wait()

    async def render(self, path: Path, messages: Sequence[Message]) -> tuple[int, ...]:
        """The prompt's ids for the model in folder `path`, up to where the assistant's answer begins.

        Raises InvalidRequest for a conversation that the model's template cannot take in time and memory, ModelBroken
        for files that cannot be used, Overloaded, and WorkerDied when the process died of it twice.
        """
        if self._runner is None or self._runner.done():
            raise Draining("Prompts are not being prepared: mlxm is starting or stopping.", retry_after_s=1.0)
        if self._waiting.qsize() >= self._limits.max_waiting:
            raise Overloaded("Too many prompts wait to be prepared.", retry_after_s=self._limits.timeout_s)
        job = _Job(path, messages)
        self._waiting.put_nowait(job)
        return await job.answer

    async def close(self) -> None:
        """End the process; jobs that have no answer yet fail with Draining."""
        if self._runner is None:
            return
        self._runner.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._runner

    async def _run(self) -> None:
        try:
            while True:
                with contextlib.suppress(MlxmError):  # the next job meets the same error and reports it
                    self._process = await self._running()
                self._has_tried.set()
                job = await self._next_job()
                if job is not None and not job.answer.done():
                    await self._do(job)
        finally:
            self._has_tried.set()
            while not self._waiting.empty():
                self._waiting.get_nowait().fail(_stopping())
            if self._process is not None:
                await self._process.stop()

    async def _next_job(self) -> _Job | None:
        """The next job; None when it is time to try again to start a process: those who ask first are turned away."""
        if self._unready is None:
            return await self._waiting.get()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_RETRY_S):
                return await self._waiting.get()
        return None

    async def _do(self, job: _Job) -> None:
        try:
            answer = await self._ask(job)
        except MlxmError as error:
            job.fail(error)
        else:
            if isinstance(answer, Tokens):
                job.succeed(answer.ids)
            else:
                job.fail(answer.fault.error())
        finally:
            job.fail(_stopping())  # without effect on a job that has its answer

    async def _ask(self, job: _Job) -> Tokens | JobFailed:
        try:
            return await self._attempt(job)
        except WorkerDied:  # perhaps not this job's doing: once more, on a new process
            return await self._attempt(job)

    async def _attempt(self, job: _Job) -> Tokens | JobFailed:
        process = await self._running()
        self._process = None  # it stays so unless the process lives through this job
        try:
            answer = await process.ask(Render(job=next(self._numbers), path=job.path, messages=job.messages))
        except WorkerDied as error:
            self._tell(error)
            raise
        self._process = process
        return answer

    async def _running(self) -> _Process:
        if self._process is not None:
            return self._process
        try:
            process = await _Process.start(self._limits)
        except MlxmError as error:
            if self._unready != error.message:  # tried again and again, it is told once
                self._tell(error)
            self._unready = error.message
            raise
        self._unready = None
        return process

    def _tell(self, error: MlxmError) -> None:
        if self._on_death is not None:
            self._on_death(error)


def _stopping() -> Draining:
    return Draining("mlxm is stopping.", hint="Send the request again once it runs.", retry_after_s=1.0)


class _Process:
    """A prep process, alive until `ask` raises."""

    def __init__(self, child: Child, limits: PrepLimits) -> None:
        self._child = child
        self._frames = child.frames()
        self._limits = limits

    @classmethod
    async def start(cls, limits: PrepLimits) -> _Process:
        arguments = ("--memory-bytes", str(limits.memory_bytes))
        return cls(await Child.start("mlxm.prep", FromPrep, arguments=arguments), limits)

    async def ask(self, job: Render) -> Tokens | JobFailed:
        """The answer to one job; when this raises, the process has been ended."""
        try:
            return await self._answer(job)
        except BaseException:
            await self._child.kill()
            raise

    async def stop(self) -> None:
        await self._child.stop(_STOP_S)

    async def _answer(self, job: Render) -> Tokens | JobFailed:
        self._child.send(job)
        frame = await self._next(self._limits.load_timeout_s, _slow_load(self._limits.load_timeout_s))
        started = isinstance(frame, JobStarted)
        if started:
            frame = await self._next(self._limits.timeout_s, _slow_job(self._limits.timeout_s))
        if isinstance(frame, Tokens | JobFailed):
            return frame
        raise await self._end(started=started)

    async def _next(self, timeout_s: float, error: MlxmError) -> JobStarted | Tokens | JobFailed | None:
        try:
            async with asyncio.timeout(timeout_s):
                frame: JobStarted | Tokens | JobFailed | None = await anext(self._frames, None)
                return frame
        except TimeoutError:
            raise error from None

    async def _end(self, *, started: bool) -> MlxmError:
        died = await self._child.death(_NAME)
        if self._child.exit_code == EXIT_OVER_MEMORY:
            return job_over_memory(self._limits.memory_bytes) if started else load_over_memory()
        return died


def _slow_job(timeout_s: float) -> InvalidRequest:
    return InvalidRequest(
        f"The chat template did not finish within {timeout_s:g} s: it loops, or the conversation is very long.",
        hint="Shorten the conversation, or use another model.",
        param="messages",
    )


def _slow_load(timeout_s: float) -> TimedOut:
    return TimedOut(
        f"The model's tokenizer was not read within {timeout_s:g} s.", hint="Try again, or use another model."
    )
