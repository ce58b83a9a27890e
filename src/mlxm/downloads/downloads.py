"""The downloads of this process: one job for each model that is wanted, a few at a time, each in a child process."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import msgspec

from mlxm.catalog import hub_errors
from mlxm.catalog.hub import HubApi, RemoteModel
from mlxm.catalog.hub_files import RemoteFile, select_files
from mlxm.catalog.names import parse_name
from mlxm.child import Child
from mlxm.downloads.cache import ModelCache, free_bytes
from mlxm.downloads.frames import Fetch, Fetched, FetchFailed, Fetching, FromFetch, Verifying, Waiting
from mlxm.downloads.job import Job, Pace, Progress
from mlxm.errors import Cancelled, InternalError, InvalidRequest, MlxmError, ModelBroken, NotFound, ProtocolMismatch
from mlxm.frames import Fault

_MODULE = "mlxm.downloads.fetch"
_XET_HOSTS = frozenset({"huggingface.co", "hf.co"})
_NO_FAULT_OF_XET = frozenset({"disk_full", "store_read_only", "store_failed"})
_DECIDED_HERE = frozenset(
    {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"}
)
_GIB = 1024**3
_GRACE_S = 5.0
_MAX_JOBS = 200


class DownloadOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How downloads are done; `cache` is the Hub's cache folder, `margin_bytes` what they leave free on its disk.

    `xet` auto uses Xet storage with the Hub itself and never with another endpoint; where Xet fails, HTTP follows.
    """

    cache: Path
    margin_bytes: int = _GIB
    num_jobs: int = 2
    num_parallel_files: int = 4
    xet: Literal["auto", "on", "off"] = "auto"
    hello_timeout_s: float = 60.0


class PlannedFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file that a pull is about."""

    path: str
    size_bytes: int
    is_present: bool


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a pull would do now."""

    name: str
    renamed_from: str | None
    revision: str
    commit: str
    files: tuple[PlannedFile, ...]
    total_bytes: int
    needed_bytes: int
    free_bytes: int
    margin_bytes: int
    path: str

    @property
    def has_room(self) -> bool:
        """Whether the disk can take it."""
        return self.needed_bytes == 0 or self.needed_bytes + self.margin_bytes <= self.free_bytes


class Downloads:
    """Starts, joins, watches and ends downloads; `close` it, on the event loop that it was made on."""

    def __init__(self, hub: HubApi, options: DownloadOptions) -> None:
        self._hub = hub
        self._options = options
        self._slots = asyncio.Semaphore(options.num_jobs)
        self._jobs: dict[str, Job] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End every download; what is whole stays, and a later start goes on from there."""
        await asyncio.gather(*(self.cancel(job_id) for job_id in list(self._tasks)))

    def start(
        self, name: str, revision: str | None = None, *, include: Sequence[str] = (), exclude: Sequence[str] = ()
    ) -> Job:
        """The job that brings this model here: the one under way when there is one, otherwise a new one.

        What goes wrong later is in the job; only a name that is none, or a forbidden pattern, raises InvalidRequest.
        """
        select_files((), include, exclude)
        progress = Progress(
            id=_job_id(parse_name(name).text, revision, include, exclude),
            name=parse_name(name).text,
            revision="main" if revision is None else revision,
            include=tuple(include),
            exclude=tuple(exclude),
        )
        known = self._jobs.get(progress.id)
        if known is not None and not known.progress.is_over:
            return known
        self._forget_old()
        self._jobs.pop(progress.id, None)  # so that the newest is last
        job = self._jobs[progress.id] = Job(progress, self._tell)
        self._tasks[job.id] = asyncio.create_task(self._run(job), name=f"download {job.progress.name}")
        self._tell()
        return job

    def resume(self, job_id: str) -> Job:
        """Start a job again that failed or was cancelled; files that are whole are not fetched again."""
        was = self.get(job_id).progress
        return self.start(
            was.name if was.renamed_from is None else was.renamed_from,
            was.revision,
            include=was.include,
            exclude=was.exclude,
        )

    def get(self, job_id: str) -> Job:
        """A job by its id; NotFound."""
        if job_id not in self._jobs:
            raise NotFound(f"There is no download {job_id}.", hint="Start it with the model's name.", param="id")
        return self._jobs[job_id]

    def list(self) -> tuple[Progress, ...]:
        """How every job of this process stands, the newest last."""
        return tuple(job.progress for job in self._jobs.values())

    async def watch(self) -> AsyncGenerator[Progress, None]:
        """How every job stands, then every change of any of them; it never ends by itself."""
        seen: dict[str, Progress] = {}
        while True:
            changed = self._changed
            news = [progress for progress in self.list() if seen.get(progress.id) is not progress]
            for progress in news:
                seen[progress.id] = progress
                yield progress
            if not news:
                await changed.wait()

    async def cancel(self, job_id: str) -> Progress:
        """End a job and its process; it has ended when this returns. A job that is over stays as it is."""
        job = self.get(job_id)
        task = self._tasks.get(job_id)
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
            self._conclude(job)  # a task that had not begun says nothing itself
        return job.progress

    async def plan(
        self, name: str, revision: str | None = None, *, include: Sequence[str] = (), exclude: Sequence[str] = ()
    ) -> Plan:
        """What `start` would fetch; changes nothing."""
        remote, files = await self._look_up(name, revision, include, exclude)
        return await asyncio.to_thread(_plan, remote, files, self._options)

    async def _run(self, job: Job) -> None:
        """The life of a job: however it ends, its end is told."""
        try:
            if self._slots.locked():
                job.change(waits_for="other downloads")
            async with self._slots:
                job.change(state="checking", waits_for=None)
                await self._bring(job)
        except MlxmError as error:
            _end(job, "failed", error)
        except asyncio.CancelledError:
            self._conclude(job)
            raise
        finally:
            if not job.progress.is_over:
                _end(job, "failed", InternalError(f"The download of {job.progress.name} ended unexpectedly."))
            self._tasks.pop(job.id, None)

    def _conclude(self, job: Job) -> None:
        """A job that was cancelled is over."""
        if not job.progress.is_over:
            _end(job, "cancelled", Cancelled(f"The download of {job.progress.name} was cancelled."))
            self._tasks.pop(job.id, None)

    async def _bring(self, job: Job) -> None:
        was = job.progress
        remote, files = await self._look_up(was.name, was.revision, was.include, was.exclude)
        job.change(
            name=remote.name,
            renamed_from=remote.asked_name if remote.is_renamed else None,
            commit=remote.commit,
            total_bytes=sum(file.size_bytes for file in files),
            num_files=len(files),
        )
        order = self._order(remote, files)
        with_xet = self._may_use_xet()
        end = await self._fetch(job, order, with_xet=with_xet)
        if with_xet and isinstance(end, FetchFailed) and end.fault.code not in _NO_FAULT_OF_XET:
            end = await self._fetch(job, order, with_xet=False)
        if isinstance(end, FetchFailed):
            raise end.fault.error()
        job.change(
            state="done",
            done_bytes=job.progress.total_bytes,
            num_done_files=len(files),
            files=(),
            waits_for=None,
            rate_bytes_per_s=None,
            eta_s=None,
            fetched_bytes=end.fetched_bytes,
            path=end.path,
        )

    async def _look_up(
        self, name: str, revision: str | None, include: Sequence[str], exclude: Sequence[str]
    ) -> tuple[RemoteModel, tuple[RemoteFile, ...]]:
        """The model on the Hub and the files of it that are wanted; raises when it cannot be fetched or used."""
        remote = await self._hub.info(name, revision)
        if remote.gated and self._hub.options.token is None:
            raise hub_errors.forbidden(self._hub.options.endpoint, remote.name, has_token=False)
        if not include and not any(file.is_weights for file in remote.files):
            raise ModelBroken(
                f"{remote.name} has no weights as safetensors, and mlxm reads no others.",
                hint=f"Look for a conversion: mlxm search {parse_name(remote.name).repo}",
            )
        files = select_files(remote.files, include, exclude)
        if not files:
            raise InvalidRequest(f"No file of {remote.name} fits the patterns.", param="include")
        return remote, files

    def _order(self, remote: RemoteModel, files: tuple[RemoteFile, ...]) -> Fetch:
        return Fetch(
            name=remote.name,
            revision=remote.revision,
            commit=remote.commit,
            cache=str(self._options.cache),
            endpoint=self._hub.options.endpoint,
            files=files,
            token=self._hub.options.token,
            margin_bytes=self._options.margin_bytes,
            num_parallel=self._options.num_parallel_files,
        )

    async def _fetch(self, job: Job, order: Fetch, *, with_xet: bool) -> Fetched | FetchFailed:
        """Have a child do it; it has ended when this returns or raises."""
        child = await Child.start(
            _MODULE,
            FromFetch,
            environ=_environment(order.endpoint, with_xet=with_xet),
            hello_timeout_s=self._options.hello_timeout_s,
        )
        pace = Pace()
        try:
            child.send(order)
            async for frame in child.frames():
                if isinstance(frame, Fetched | FetchFailed):
                    await child.stop(_GRACE_S)
                    return frame
                job.change(**_news(frame, pace, job.progress))
            raise await child.death(f"The download of {order.name}")
        finally:
            await child.kill()
            await asyncio.to_thread(ModelCache(self._options.cache, order.name).remove_leftovers)

    def _may_use_xet(self) -> bool:
        if self._options.xet == "auto":
            return urlsplit(self._hub.options.endpoint).hostname in _XET_HOSTS
        return self._options.xet == "on"

    def _forget_old(self) -> None:
        """Room for one more, at the cost of those that are over."""
        over = [job.id for job in self._jobs.values() if job.progress.is_over]
        for job_id in over[: max(0, len(self._jobs) - _MAX_JOBS + 1)]:
            del self._jobs[job_id]

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def _job_id(name: str, revision: str | None, include: Sequence[str], exclude: Sequence[str]) -> str:
    asked = msgspec.json.encode((name, "main" if revision is None else revision, sorted(include), sorted(exclude)))
    return f"dl_{hashlib.sha256(asked).hexdigest()[:12]}"


def _end(job: Job, state: Literal["failed", "cancelled"], error: MlxmError) -> None:
    job.change(state=state, error=Fault.of(error), files=(), waits_for=None, rate_bytes_per_s=None, eta_s=None)


def _news(frame: FromFetch, pace: Pace, was: Progress) -> dict[str, Any]:
    """What a frame changes in a job's progress."""
    match frame:
        case Waiting(pid=pid):
            who = "another process" if pid is None else f"another process (pid {pid})"
            return {"state": "queued", "waits_for": f"{who} that fetches the same model"}
        case Fetching():
            rate = pace.rate(time.monotonic(), frame.done_bytes)
            left = None if was.total_bytes is None else was.total_bytes - frame.done_bytes
            return {
                "state": "downloading",
                "waits_for": None,
                "done_bytes": frame.done_bytes,
                "num_done_files": frame.num_done,
                "files": frame.paths,
                "rate_bytes_per_s": rate,
                "eta_s": left / rate if left is not None and rate else None,
            }
        case Verifying():
            return {
                "state": "verifying",
                "waits_for": None,
                "verified_bytes": frame.verified_bytes,
                "files": frame.paths,
                "rate_bytes_per_s": None,
                "eta_s": None,
            }
        case _:
            raise ProtocolMismatch(f"A download sent an unexpected {type(frame).__name__}.")


def _environment(endpoint: str, *, with_xet: bool) -> dict[str, str]:
    """The child's variables: what was decided here is not decided again there."""
    inherited = {name: value for name, value in os.environ.items() if name not in _DECIDED_HERE}
    decided = {
        "HF_ENDPOINT": endpoint,
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    return inherited | decided if with_xet else inherited | decided | {"HF_HUB_DISABLE_XET": "1"}


def _plan(remote: RemoteModel, files: tuple[RemoteFile, ...], options: DownloadOptions) -> Plan:
    cache = ModelCache(options.cache, remote.name)
    return Plan(
        name=remote.name,
        renamed_from=remote.asked_name if remote.is_renamed else None,
        revision=remote.revision,
        commit=remote.commit,
        files=tuple(
            PlannedFile(path=file.path, size_bytes=file.size_bytes, is_present=cache.is_present(remote.commit, file))
            for file in files
        ),
        total_bytes=sum(file.size_bytes for file in files),
        needed_bytes=cache.needed_bytes(remote.commit, files),
        free_bytes=free_bytes(options.cache),
        margin_bytes=options.margin_bytes,
        path=str(cache.snapshot(remote.commit)),
    )
