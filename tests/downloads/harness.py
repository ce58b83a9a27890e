"""A model to fetch, and ways to fetch it: in this process, and in one that can be killed."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from mlxm.catalog.hub import HubApi, HubOptions
from mlxm.downloads import DownloadOptions, Downloads, Progress
from mlxm.errors import MlxmError
from mlxm.testing.fake_hub import FakeHub

T = TypeVar("T")

NAME = "mlx-community/tiny-4bit"
FOLDER = "models--mlx-community--tiny-4bit"
BOUND_S = 120.0
SCRIPT = Path(__file__).parent / "children" / "pull.py"
LARGE = "/" + "?" * 64
"""Where the hub's second address has large files, as a glob: under their hash."""


def model_files(*, shards: int = 1, shard_bytes: int = 200_000, seed: int = 0) -> dict[str, bytes]:
    """A repository with weights, what belongs to them, and what is never fetched."""
    chance = random.Random(seed)
    return {
        "config.json": b'{"model_type": "llama"}',
        "tokenizer.json": b'{"model": {}}',
        "tokenizer_config.json": b"{}",
        "README.md": b"# tiny\n",
        "pytorch_model.bin": b"pickled",
        "modeling.py": b"raise SystemExit",
    } | {f"model-{number:05}.safetensors": chance.randbytes(shard_bytes) for number in range(shards)}


def with_downloads(
    hub: FakeHub,
    cache: Path,
    use: Callable[[Downloads], Awaitable[T]],
    *,
    token: str | None = None,
    offline: bool = False,
    **options: Any,
) -> T:
    """Do something with the downloads of a process that knows this hub, within bounded time."""

    async def run() -> T:
        hub_options = HubOptions(endpoint=hub.url, token=token, offline=offline, max_wait_s=5.0)
        settings = {"cache": cache, "margin_bytes": 0, **options}
        async with (
            asyncio.timeout(BOUND_S),
            HubApi(hub_options) as api,
            Downloads(api, DownloadOptions(**settings)) as all_,
        ):
            return await use(all_)

    return asyncio.run(run())


def pull(hub: FakeHub, cache: Path, name: str = NAME, *, revision: str | None = None, **options: Any) -> Progress:
    """Fetch a model to the end, whatever that is."""

    async def use(downloads: Downloads) -> Progress:
        job = downloads.start(name, revision)
        with suppress(MlxmError):
            await job.wait()
        return job.progress

    return with_downloads(hub, cache, use, **options)


def snapshot_of(progress: Progress) -> dict[str, bytes]:
    """The files of a model that was fetched."""
    assert progress.path is not None, progress.error
    folder = Path(progress.path)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def wanted_of(files: dict[str, bytes]) -> dict[str, bytes]:
    """What a pull should bring."""
    return {path: content for path, content in files.items() if not path.endswith((".bin", ".py"))}


def place_of(content: bytes) -> str:
    """Where the hub's second address has a large file."""
    return f"/{hashlib.sha256(content).hexdigest()}"


class Puller:
    """A process that fetches a model and prints its progress as lines of JSON."""

    def __init__(self, hub: FakeHub, cache: Path, environment: dict[str, str], prefix: Iterable[str] = ()) -> None:
        command = [*prefix, sys.executable, str(SCRIPT), hub.url, str(cache), NAME]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )
        self._limit = threading.Timer(BOUND_S, self.process.kill)
        self._limit.start()

    def read_until(self, is_it: Callable[[Progress], bool]) -> Progress:
        """The first progress that is so; the process must not end before."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            progress = msgspec.convert(json.loads(line), Progress)
            if is_it(progress):
                return progress
        raise AssertionError(f"the process ended with {self.process.wait(BOUND_S)} and never said so")

    def tell(self) -> None:
        """Let the script go on from where it waits."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        """End it with -9 and collect it."""
        self._limit.cancel()
        self.process.kill()
        self.process.communicate(timeout=BOUND_S)
