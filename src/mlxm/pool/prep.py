"""The server's side of prep: conversations go in, token ids come out, and no template can hold anything up.

One process does one job at a time; a job that breaks its limits costs that process its life and nobody else anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Final

import msgspec

from mlxm.child import Child
from mlxm.engine.grammar import refusal
from mlxm.errors import Draining, InvalidRequest, MlxmError, Overloaded, ProtocolMismatch, TimedOut, WorkerDied
from mlxm.frames import (
    Decode,
    Describe,
    Description,
    Encode,
    FromPrep,
    GrammarVetted,
    JobFailed,
    JobStarted,
    Render,
    Text,
    Tokens,
    VetGrammar,
)
from mlxm.prep.limits import EXIT_OVER_MEMORY, job_over_memory, load_over_memory
from mlxm.prep.options import PLAIN, RenderOptions
from mlxm.types import ChatRequest, Grammar, Message

_NAME: Final = "The process that prepares prompts"
_STOP_S: Final = 1.0
_RETRY_S: Final = 1.0

_MAX_VERDICTS: Final = 512
_DIGEST_BYTES: Final = 16

Order = Render | Encode | Decode | Describe | VetGrammar
Answer = Tokens | Text | Description | GrammarVetted | JobFailed
OnDeath = Callable[[MlxmError], None]


class PrepLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What one job may use, not counting the reading of a tokenizer, and how many may wait."""

    timeout_s: float = 2.0
    memory_bytes: int = 256 * 1024**2
    load_timeout_s: float = 30.0
    max_waiting: int = 1024


class _Job:
    def __init__(self, order: Order) -> None:
        self.order = order
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def succeed(self, answer: Answer) -> None:
        if not self.answer.done():  # its caller may have gone
            self.answer.set_result(answer)

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
        self._verdicts: OrderedDict[bytes, Answer] = OrderedDict()
        """What was found out about the latest grammars, by their digests."""
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

    async def render(self, path: Path, messages: Sequence[Message], options: RenderOptions = PLAIN) -> Tokens:
        """The prompt for the model in folder `path`, up to where the assistant's answer begins or goes on.

        Raises InvalidRequest for a conversation that the model's template cannot take in time and memory,
        UnsupportedParameter for options that it does not read, ModelBroken for files that cannot be used, Overloaded,
        and WorkerDied when the process died of it twice.
        """
        order = Render(
            job=next(self._numbers),
            path=str(path),
            messages=tuple(messages),
            tools=options.tools,
            thinking=options.thinking,
            template_options=options.template_options,
            continues_final=options.continues_final,
        )
        return msgspec.structs.replace(await self._tokens(order), job=0)

    async def render_chat(self, path: Path, request: ChatRequest) -> Tokens:
        """The same for a request, with its tools unless they are not to be called."""
        options = RenderOptions(
            tools=() if request.tool_choice.mode == "none" else request.tools,
            thinking=request.thinking,
            template_options=request.template_options,
            continues_final=request.continues_final,
        )
        return await self.render(path, request.messages, options)

    async def encode(
        self, path: Path, text: str, *, suffix: str | None = None, is_bare: bool = False
    ) -> tuple[int, ...]:
        """The ids of a text without a template, and of the text after its gap; raises what `render` raises."""
        number = next(self._numbers)
        order = Encode(job=number, path=str(path), text=text, suffix=suffix, is_bare=is_bare)
        return (await self._tokens(order)).ids

    async def decode(self, path: Path, ids: tuple[int, ...]) -> str:
        """The text of token ids; raises what `render` raises, and InvalidRequest for ids that are no tokens."""
        answer = await self._enqueue(Decode(job=next(self._numbers), path=str(path), ids=ids))
        match answer:
            case Text():
                return answer.text
            case JobFailed():
                raise answer.fault.error()
        raise _stray(answer)

    async def describe(self, path: Path) -> Description:
        """How the model in folder `path` writes; raises what `render` raises."""
        answer = await self._enqueue(Describe(job=next(self._numbers), path=str(path)))
        match answer:
            case Description():
                return answer
            case JobFailed():
                raise answer.fault.error()
        raise _stray(answer)

    async def _tokens(self, order: Order) -> Tokens:
        answer = await self._enqueue(order)
        match answer:
            case Tokens():
                return answer
            case JobFailed():
                raise answer.fault.error()
        raise _stray(answer)

    async def vet(self, grammar: Grammar) -> None:
        """Make sure that a grammar is one, and costs no more than a grammar may; equal ones are looked at once.

        Raises InvalidRequest, also for one that cannot be read in time and memory, Overloaded, and WorkerDied.
        """
        digest = blake2b(msgspec.msgpack.encode(grammar), digest_size=_DIGEST_BYTES).digest()
        answer = self._verdicts.pop(digest, None)
        if answer is None:
            answer = await self._enqueue(VetGrammar(job=next(self._numbers), grammar=grammar))
        self._verdicts[digest] = answer
        if len(self._verdicts) > _MAX_VERDICTS:
            self._verdicts.popitem(last=False)
        if isinstance(answer, JobFailed):
            raise answer.fault.error()

    async def _enqueue(self, order: Order) -> Answer:
        if self._runner is None or self._runner.done():
            raise Draining("Prompts are not being prepared: mlxm is starting or stopping.", retry_after_s=1.0)
        if self._waiting.qsize() >= self._limits.max_waiting:
            raise Overloaded("Too many prompts wait to be prepared.", retry_after_s=self._limits.timeout_s)
        job = _Job(order)
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
            job.succeed(answer)
        finally:
            job.fail(_stopping())  # without effect on a job that has its answer

    async def _ask(self, job: _Job) -> Answer:
        try:
            return await self._attempt(job)
        except WorkerDied:  # perhaps not this job's doing: once more, on a new process
            return await self._attempt(job)

    async def _attempt(self, job: _Job) -> Answer:
        process = await self._running()
        self._process = None  # it stays so unless the process lives through this job
        try:
            answer = await process.ask(job.order)
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

    async def ask(self, order: Order) -> Answer:
        """The answer to one job; when this raises, the process has been ended."""
        try:
            return await self._answer(order)
        except BaseException:
            await self._child.kill()
            raise

    async def stop(self) -> None:
        await self._child.stop(_STOP_S)

    async def _answer(self, order: Order) -> Answer:
        self._child.send(order)
        frame = await self._next(self._limits.load_timeout_s, _slow_load(self._limits.load_timeout_s))
        started = isinstance(frame, JobStarted)
        if started:
            frame = await self._next(self._limits.timeout_s, _slow_job(order, self._limits.timeout_s))
        if isinstance(frame, Answer):
            return frame
        raise await self._end(order, started=started)

    async def _next(self, timeout_s: float, error: MlxmError) -> JobStarted | Answer | None:
        try:
            async with asyncio.timeout(timeout_s):
                frame: JobStarted | Answer | None = await anext(self._frames, None)
                return frame
        except TimeoutError:
            raise error from None

    async def _end(self, order: Order, *, started: bool) -> MlxmError:
        died = await self._child.death(_NAME)
        if self._child.exit_code == EXIT_OVER_MEMORY:
            if isinstance(order, VetGrammar):
                return refusal("it takes too much memory")
            return job_over_memory(self._limits.memory_bytes) if started else load_over_memory()
        return died


def _stray(answer: Answer) -> ProtocolMismatch:
    return ProtocolMismatch(f"{_NAME} answered with {type(answer).__name__}.", hint="Restart the server.")


def _slow_job(order: Order, timeout_s: float) -> InvalidRequest:
    if isinstance(order, VetGrammar):
        return refusal(f"it could not be read within {timeout_s:g} s")
    return InvalidRequest(
        f"The chat template did not finish within {timeout_s:g} s: it loops, or the conversation is very long.",
        hint="Shorten the conversation, or use another model.",
        param="messages",
    )


def _slow_load(timeout_s: float) -> TimedOut:
    return TimedOut(
        f"The model's tokenizer was not read within {timeout_s:g} s.", hint="Try again, or use another model."
    )
