from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from mlxm.downloads import Progress
from mlxm.testing.fake_hub import FakeHub, Mishap
from tests.downloads.harness import (
    BOUND_S,
    FOLDER,
    LARGE,
    NAME,
    Puller,
    model_files,
    place_of,
    pull,
    snapshot_of,
    wanted_of,
)

KILLS = 10
SHARDS = 12
SHARD_BYTES = 100_000


def until(is_so: Callable[[], bool]) -> None:
    """Wait for something that only looking at it tells."""
    deadline = time.monotonic() + BOUND_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def whole_contents(cache: Path) -> set[str]:
    """The hashes of the contents that are on the disk."""
    return {path.name for path in (cache / FOLDER / "blobs").glob("*") if not path.name.endswith(".incomplete")}


def test_a_pull_that_is_killed_ten_times_ends_verified(
    hub: FakeHub, cache: Path, unmeasured: dict[str, str], is_gone: Callable[[int, float], bool]
) -> None:
    """Killed with -9 at random moments, before, between and within files; what was whole is never fetched again."""
    files = model_files(shards=SHARDS, shard_bytes=SHARD_BYTES)
    hub.add(NAME, files)
    hub.break_with(Mishap(LARGE, method="GET", times=None, bytes_per_s=300_000))
    chance = random.Random(3)
    kept: list[tuple[str, int]] = []
    for kill in range(KILLS):
        puller = Puller(hub, cache, unmeasured)
        if kill % 3 == 0:
            time.sleep(chance.uniform(0, 2))
        else:
            sent = hub.sent_bytes(LARGE) + chance.randrange(3 * SHARD_BYTES)
            until(lambda sent=sent, pulling=puller.process: hub.sent_bytes(LARGE) >= sent or pulling.poll() is not None)
        children = psutil.Process(puller.process.pid).children(recursive=True)
        puller.kill()
        assert all(is_gone(child.pid, 5) for child in children)
        kept += [(name, hub.count(f"/{name}", method="GET")) for name in whole_contents(cache)]
    hub.mend()
    progress = pull(hub, cache)
    assert wanted_of(files) == snapshot_of(progress)
    assert progress.state == "done"
    assert len(whole_contents(cache)) == len(wanted_of(files))
    assert list((cache / FOLDER / "blobs").glob("*.incomplete")) == []
    assert kept
    assert [name for name, gets in kept if hub.count(f"/{name}", method="GET") != gets] == []


def test_two_processes_fetch_a_model_once(hub: FakeHub, cache: Path, unmeasured: dict[str, str]) -> None:
    """The second says whom it waits for, and has nothing left to do."""
    files = model_files(shards=2)
    hub.add(NAME, files)
    gate = threading.Event()
    hub.break_with(Mishap(place_of(files["model-00000.safetensors"]), method="GET", hold=gate))
    first = Puller(hub, cache, unmeasured)
    first.read_until(lambda progress: any("safetensors" in name for name in progress.files))
    second = Puller(hub, cache, unmeasured)
    waiting = second.read_until(lambda progress: progress.waits_for is not None)
    (child,) = psutil.Process(first.process.pid).children()
    assert waiting.state == "queued"
    assert waiting.waits_for == f"another process (pid {child.pid}) that fetches the same model"
    gate.set()
    ends = [puller.read_until(is_over) for puller in (first, second)]
    assert [puller.process.wait(BOUND_S) for puller in (first, second)] == [0, 0]
    assert [end.state for end in ends] == ["done", "done"]
    assert [end.fetched_bytes for end in ends] == [ends[0].total_bytes, 0]
    assert hub.count(LARGE, method="GET") == 3
    assert hub.count("*/resolve/*/config.json", method="GET") == 1
    for puller in (first, second):
        puller.kill()


def test_the_one_that_waits_goes_on_when_the_other_dies(hub: FakeHub, cache: Path, unmeasured: dict[str, str]) -> None:
    """The lock dies with its holder."""
    files = model_files()
    hub.add(NAME, files)
    hub.break_with(Mishap(place_of(files["model-00000.safetensors"]), method="GET", bytes_per_s=1000))
    first, second = Puller(hub, cache, unmeasured), None
    try:
        first.read_until(lambda progress: bool(progress.files) and progress.done_bytes > 100)
        second = Puller(hub, cache, unmeasured)
        second.read_until(lambda progress: progress.waits_for is not None)
        first.kill()
        end = second.read_until(is_over)
        assert wanted_of(files) == snapshot_of(end)
    finally:
        for puller in (first, second):
            if puller is not None:
                puller.kill()


def test_a_disk_that_fills_up_on_the_way_is_named(
    hub: FakeHub, cache: Path, unmeasured: dict[str, str], mount_namespace: list[str]
) -> None:
    """What is whole stays; what is not takes no room."""
    files = model_files(shard_bytes=600_000)
    hub.add(NAME, files)
    gate = threading.Event()
    hub.break_with(Mishap(place_of(files["model-00000.safetensors"]), method="GET", hold=gate))
    cache.mkdir()
    program = f'mount -t tmpfs -o size=2m tmpfs "{cache}" && exec "$0" "$@" "{cache}/ballast"'
    puller = Puller(hub, cache, unmeasured, prefix=[*mount_namespace, "sh", "-c", program])
    puller.read_until(lambda progress: any("safetensors" in name for name in progress.files))
    gate.set()
    puller.tell()
    end = puller.read_until(is_over)
    puller.kill()
    assert end.state == "failed"
    assert end.error is not None
    assert end.error.code == "disk_full"
    assert end.error.message == f"The disk of {cache} is full."


def is_over(progress: Progress) -> bool:
    """Whether it is the last."""
    return progress.is_over
