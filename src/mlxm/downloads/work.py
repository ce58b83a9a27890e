"""What a download's process does: wait for its turn, fetch what is missing, verify everything, and say so.

huggingface_hub 2.4 writes each attempt at a file into a new temporary file. A dropped connection is continued within
the attempt; after the death of the process a file that was not whole starts again, and files that were whole are kept.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

import msgspec
from huggingface_hub import hf_hub_download

from mlxm.catalog.hub_files import RemoteFile
from mlxm.downloads import failures
from mlxm.downloads.cache import ModelCache, free_bytes
from mlxm.downloads.frames import Fetch, Fetched, FetchFailed, Fetching, Verifying, Waiting
from mlxm.downloads.lock import hold_alone
from mlxm.downloads.transfer import FileMeter, Transfers, progress_class
from mlxm.downloads.verify import Notebook, is_as_said
from mlxm.errors import MlxmError
from mlxm.frames import Fault

REPORT_S = 0.2
_WAITS_S = (0.5, 1.0, 2.0)

Say = Callable[[msgspec.Struct], None]


def carry_out(order: Fetch, say: Say) -> Fetched | FetchFailed:
    """Do it, say how far it is, and answer with how it ended."""
    try:
        return Work(order, say).run()
    except MlxmError as error:
        return FetchFailed(fault=Fault.of(error))
    except failures.FOREIGN as error:
        return FetchFailed(fault=Fault.of(failures.translated(error, order)))


class Work:
    """One model's files, from the Hub to the cache."""

    def __init__(self, order: Fetch, say: Say) -> None:
        self._order = order
        self._say = say
        self._cache = ModelCache(Path(order.cache), order.name)
        self._transfers = Transfers(order.endpoint, order.commit)
        self._lock = threading.Lock()
        self._meters: list[FileMeter] = []
        self._num_done = 0
        self._done_bytes = 0

    def run(self) -> Fetched:
        """Fetch, verify, and let the revision mean this commit; raises the narrowest error."""
        self._transfers.install()
        with hold_alone(self._cache.lock_path, lambda pid: self._say(Waiting(pid=pid))):
            self._cache.remove_leftovers()
            missing = self._cache.missing(self._order.commit, self._order.files)
            self._check_space()
            self._fetch(missing)
            again = self._verify(missing)
            if again:  # they lay here before, and were damaged
                self._fetch(again)
                self._verify(again)
            self._cache.write_ref(self._order.revision, self._order.commit)
        fetched_bytes = sum(file.size_bytes for file in (*missing, *again))
        return Fetched(path=str(self._cache.snapshot(self._order.commit)), fetched_bytes=fetched_bytes)

    def _check_space(self) -> None:
        needed = self._cache.needed_bytes(self._order.commit, self._order.files)
        free = free_bytes(self._cache.cache)
        if needed and needed + self._order.margin_bytes > free:
            raise failures.disk_full(self._order, needed, free)

    def _fetch(self, files: tuple[RemoteFile, ...]) -> None:
        """Weights come last: a folder with weights but without the small files would look whole."""
        for file in files:
            self._cache.discard_wrong_size(self._order.commit, file)
        present = [file for file in self._order.files if file not in files]
        self._num_done, self._done_bytes = len(present), sum(file.size_bytes for file in present)
        with self._reporting(self._fetching):
            self._fetch_side_by_side(tuple(file for file in files if not file.is_weights))
            self._fetch_side_by_side(tuple(file for file in files if file.is_weights))

    def _fetch_side_by_side(self, files: tuple[RemoteFile, ...]) -> None:
        executor = ThreadPoolExecutor(self._order.num_parallel)
        running = [executor.submit(self._fetch_one, file) for file in files]
        try:
            for each in as_completed(running):
                each.result()
        finally:  # a failure is told at once; the parent then ends this process, and the other threads with it
            executor.shutdown(wait=False, cancel_futures=True)

    def _fetch_one(self, file: RemoteFile) -> None:
        meter = FileMeter(file.path, file.size_bytes)
        self._transfers.fetch_into(meter)
        with self._lock:
            self._meters.append(meter)
        for wait_s in (*_WAITS_S, None):
            try:
                self._download(file, meter)
                break
            except failures.FOREIGN as error:
                if wait_s is None or not failures.is_transient(error):
                    raise failures.translated(error, self._order, file) from error
                time.sleep(wait_s)
        with self._lock:
            self._meters.remove(meter)
            self._done_bytes += file.size_bytes
            self._num_done += 1

    def _download(self, file: RemoteFile, meter: FileMeter) -> None:
        hf_hub_download(
            self._order.name,
            file.path,
            revision=self._order.commit,
            cache_dir=self._order.cache,
            token=False if self._order.token is None else self._order.token,
            endpoint=self._order.endpoint,
            library_name="mlxm",
            tqdm_class=progress_class(meter),
        )

    def _verify(self, fetched: tuple[RemoteFile, ...]) -> tuple[RemoteFile, ...]:
        """Read everything back that the notebook does not know; raises for a file of `fetched`.

        Answers with files that were here before and are not as they should be; these and those are removed.
        """
        notebook = Notebook(self._cache.notebook_path)
        places = {file: self._cache.place(self._order.commit, file) for file in self._order.files}
        unknown = [file for file, place in places.items() if not notebook.knows(place, file)]
        reader = _Reader(places, notebook)
        with self._reporting(reader.report), ThreadPoolExecutor(self._order.num_parallel) as executor:
            verdicts = zip(unknown, executor.map(reader.check, unknown), strict=True)
            wrong = [file for file, is_right in verdicts if not is_right]
        for file in wrong:
            self._cache.discard(self._order.commit, file)
        for file in wrong:
            if file in fetched:
                raise failures.wrong_content(self._order, file)
        return tuple(wrong)

    def _fetching(self) -> Fetching:
        with self._lock:
            return Fetching(
                done_bytes=self._done_bytes + sum(meter.done_bytes for meter in self._meters),
                num_done=self._num_done,
                paths=tuple(meter.path for meter in self._meters),
            )

    @contextmanager
    def _reporting(self, describe: Callable[[], msgspec.Struct]) -> Iterator[None]:
        """Say how far it is, before, every now and then, and after."""
        is_over = threading.Event()

        def report() -> None:
            while not is_over.wait(REPORT_S):
                self._say(describe())

        self._say(describe())
        reporter = threading.Thread(target=report, daemon=True)
        reporter.start()
        try:
            yield
        finally:
            is_over.set()
            reporter.join()
            self._say(describe())


class _Reader:
    """Reads files back, several threads at once."""

    def __init__(self, places: dict[RemoteFile, Path], notebook: Notebook) -> None:
        self._places = places
        self._notebook = notebook
        self._lock = threading.Lock()
        self._verified_bytes = 0
        self._paths: list[str] = []

    def check(self, file: RemoteFile) -> bool:
        """Whether a file is as the Hub says; if so, the notebook knows it from now on."""
        self._paths.append(file.path)
        is_right = is_as_said(self._places[file], file, self._count)
        if is_right:
            self._notebook.add(self._places[file], file)
        self._paths.remove(file.path)
        return is_right

    def report(self) -> Verifying:
        """How far it is."""
        return Verifying(verified_bytes=self._verified_bytes, paths=tuple(self._paths))

    def _count(self, num_bytes: int) -> None:
        with self._lock:
            self._verified_bytes += num_bytes
