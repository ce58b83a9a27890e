"""The server's side of one worker: a model in a process of its own, and the requests that it runs."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from mlxm.child import Child
from mlxm.errors import Conflict, Draining, InternalError, MlxmError, ProtocolMismatch, TimedOut, WorkerDied
from mlxm.frames import (
    MAX_ROWS,
    Cancel,
    FromWorker,
    Generate,
    Load,
    Loaded,
    LoadFailed,
    LoadProgress,
    PrefillAsked,
    PrefillGivenBack,
    PrefillTurn,
    Shrink,
    Stats,
    Step,
)
from mlxm.pool.stream import RequestEvent, RequestStream
from mlxm.store.private import check_folder, make_folder

_STOP_S = 5.0

Progress = Callable[[LoadProgress], None]
OnDeath = Callable[[MlxmError], None]
OnWords = Callable[[str, str], None]
"""Told the model's name and a line that its worker wrote on stderr."""
OnTurn = Callable[["Worker", bool], None]
"""Told that a worker asks for the turn to compute long prompts, True, or has it no more, False."""


class WorkerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How workers are started; `blas_threads` None leaves the number to the library.

    `scratch` is where mlx compiles the code that it then loads: in a folder that others can write to, they could put
    code of their own there, or block it. None leaves that to the environment. `verdicts` is the
    folder that keeps which store for keys and values is good for a model.
    """

    blas: str = "auto"
    blas_threads: int | None = None
    hello_timeout_s: float = 60.0
    load_timeout_s: float = 300.0
    scratch: Path | None = None
    max_rows: int = MAX_ROWS
    """How many answers it computes at once."""
    verdicts: Path | None = None

    def arguments(self) -> tuple[str, ...]:
        """The same on the worker's command line."""
        threads = () if self.blas_threads is None else ("--blas-threads", str(self.blas_threads))
        return ("--blas", self.blas, *threads)

    def environ(self) -> dict[str, str] | None:
        """The worker's environment, None for this process's own; makes `scratch`, which no one else may enter."""
        if self.scratch is None:
            return None
        make_folder(self.scratch)
        check_folder(self.scratch)
        return os.environ | {"TMPDIR": str(self.scratch)}


def ignore(*_: object) -> None:
    """For those who do not want to know."""


class Name:
    """Of which model a process speaks: a spare one learns that late."""

    def __init__(self, text: str) -> None:
        self.text = text


class Worker:
    """A worker process; the model `name` is what its errors speak of."""

    def __init__(
        self,
        child: Child,
        name: Name,
        options: WorkerOptions,
        on_death: OnDeath = ignore,
        on_turn: OnTurn = ignore,
    ) -> None:
        self._child = child
        self._on_death = on_death
        self._on_turn = on_turn
        self._name = name
        self._options = options
        self._requests: dict[str, RequestStream] = {}
        self._numbers = itertools.count(1)
        self._loaded: asyncio.Future[Loaded] = asyncio.get_running_loop().create_future()
        self._report: Progress = ignore
        self._end: MlxmError | None = None
        self._stats: Stats | None = None
        self._reading = asyncio.create_task(self._read(), name=f"worker {name.text}")

    @classmethod
    async def start(
        cls,
        name: str,
        options: WorkerOptions,
        on_death: OnDeath = ignore,
        on_words: OnWords = ignore,
        on_turn: OnTurn = ignore,
    ) -> Worker:
        """Start a worker that has no model yet; raises WorkerDied or ProtocolMismatch.

        `on_death` is told why when it dies, now or later, without having been asked to leave; `on_words` of what it
        says on stderr.
        """
        known_as = Name(name)
        environ = await asyncio.to_thread(options.environ)
        try:
            child = await Child.start(
                "mlxm.worker",
                FromWorker,
                arguments=options.arguments(),
                environ=environ,
                hello_timeout_s=options.hello_timeout_s,
                on_words=lambda words: on_words(known_as.text, words),
            )
        except WorkerDied as error:
            on_death(error)
            raise
        return cls(child, known_as, options, on_death, on_turn)

    def rename(self, name: str) -> None:
        """Speak of another model from now on."""
        self._name.text = name

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._child.pid

    @property
    def end(self) -> MlxmError | None:
        """Why requests cannot be sent to it any more; None while they can."""
        return self._end

    @property
    def is_alive(self) -> bool:
        """Whether requests can be sent to it."""
        return self._end is None

    @property
    def num_requests(self) -> int:
        """How many requests it has not ended yet."""
        return len(self._requests)

    @property
    def loaded(self) -> Loaded | None:
        """What it said about its model, once that is loaded."""
        return self._loaded.result() if self._loaded.done() and self._loaded.exception() is None else None

    @property
    def stats(self) -> Stats | None:
        """How it said lately that it is doing."""
        return self._stats

    async def load(
        self, folder: Path, report: Progress = ignore, *, kv_bytes: int | None = None, cache_bytes: int | None = None
    ) -> Loaded:
        """Load its model; when this raises, the worker has been ended.

        `kv_bytes` is what keys and values may take, `cache_bytes` what may be kept of freed memory.
        """
        self._report = report
        self._child.send(self._order_to_load(folder, kv_bytes, cache_bytes))
        try:
            async with asyncio.timeout(self._options.load_timeout_s):
                return await asyncio.shield(self._loaded)
        except TimeoutError:
            await self.kill()
            raise TimedOut(f"{self._name.text} was not loaded within {self._options.load_timeout_s:g} s.") from None
        except MlxmError:
            await self.stop()  # it is leaving already
            raise
        except BaseException:
            await self.kill()
            raise

    def _order_to_load(self, folder: Path, kv_bytes: int | None, cache_bytes: int | None) -> Load:
        options = self._options
        verdicts = None if options.verdicts is None else str(options.verdicts)
        return Load(
            path=str(folder),
            kv_bytes=kv_bytes,
            cache_bytes=cache_bytes,
            max_rows=options.max_rows,
            verdicts=verdicts,
        )

    def generate(self, request: Generate, on_end: Callable[[], None] = ignore) -> RequestStream:
        """Send a request; `on_end` is called once the worker is done with it, by itself or because it died."""
        if self._end is not None:
            raise self._end
        request = self._renamed_if_taken(request)

        def cancel(reason: str) -> None:
            self._child.send(Cancel(request_id=request.request_id, reason=reason))

        def forget() -> None:
            del self._requests[request.request_id]
            on_end()

        self._child.send(request)
        stream = self._requests[request.request_id] = RequestStream(cancel=cancel, on_end=forget)
        return stream

    def _renamed_if_taken(self, request: Generate) -> Generate:
        """A client that left may ask again under the same id before the worker has ended what it left behind."""
        earlier = self._requests.get(request.request_id)
        if earlier is None:
            return request
        if not earlier.is_closed:
            raise Conflict(f"A request {request.request_id} is already running.")
        return msgspec.structs.replace(request, request_id=f"{request.request_id}~{next(self._numbers)}")

    def shrink(self) -> None:
        """Have it give back memory that it only keeps for later; one without a model has none."""
        if self.loaded is not None:
            self._child.send(Shrink())

    def give_turn(self, *, has_it: bool) -> None:
        """Say whether it is its turn to compute long prompts."""
        self._child.send(PrefillTurn(has_it))

    async def ended(self) -> MlxmError:
        """Wait until it has ended, in whatever way."""
        await asyncio.wait([self._reading])
        return InternalError("It ended.") if self._end is None else self._end

    async def stop(self) -> None:
        """Let the worker leave; requests that it still runs fail with Draining."""
        self._finish(Draining(f"{self._name.text} is being unloaded.", retry_after_s=1.0))
        await self._child.stop(_STOP_S)
        await asyncio.wait([self._reading])

    async def kill(self) -> None:
        """End the worker now."""
        self._finish(Draining(f"{self._name.text} is being unloaded.", retry_after_s=1.0))
        await self._child.kill()
        await asyncio.wait([self._reading])

    async def _read(self) -> None:
        try:
            async for frame in self._child.frames():
                self._dispatch(frame)
            death = await self._child.death(f"The worker of {self._name.text}")
            if self._end is None:
                self._on_death(death)
            self._finish(death)
        except ProtocolMismatch as error:
            self._finish(error)
            await self._child.kill()
        finally:
            self._finish(InternalError(f"Nobody listens to the worker of {self._name.text} any more."))

    def _dispatch(self, frame: FromWorker) -> None:
        match frame:
            case Step(events=events):
                for event in events:
                    self._pass_on(event)
            case Stats():
                self._stats = frame
            case LoadProgress():
                self._report(frame)
            case Loaded() if not self._loaded.done():
                self._loaded.set_result(frame)
                self._on_turn(self, True)  # noqa: FBT003  # as OnTurn says
            case PrefillAsked():
                self._on_turn(self, True)  # noqa: FBT003  # as above
            case PrefillGivenBack():
                self._on_turn(self, False)  # noqa: FBT003  # as above
            case LoadFailed(fault=fault):
                self._finish(fault.error())
            case _:
                raise ProtocolMismatch(f"The worker sent an unexpected {type(frame).__name__}.")

    def _pass_on(self, event: RequestEvent) -> None:
        """Requests that failed here already are not known any more."""
        stream = self._requests.get(event.request_id)
        if stream is not None:
            stream.put(event)

    def _finish(self, reason: MlxmError) -> None:
        """Answer everybody who waits; the first reason counts."""
        if self._end is not None:
            return
        self._end = reason
        self._on_turn(self, False)  # noqa: FBT003  # as above
        if not self._loaded.done():
            self._loaded.set_exception(reason)
            self._loaded.exception()  # whether or not anybody waits for it
        for stream in list(self._requests.values()):
            stream.fail(reason)
