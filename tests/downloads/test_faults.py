from __future__ import annotations

import os
import threading
from pathlib import Path

import psutil
import pytest

from mlxm.downloads import Downloads, Progress
from mlxm.frames import Fault
from mlxm.testing.fake_hub import FakeHub, Mishap
from tests.downloads.harness import (
    FOLDER,
    LARGE,
    NAME,
    model_files,
    place_of,
    pull,
    snapshot_of,
    wanted_of,
    with_downloads,
)

FILES = model_files()
WEIGHTS = FILES["model-00000.safetensors"]


def error_of(progress: Progress) -> Fault:
    """What a pull failed with."""
    assert progress.state == "failed"
    assert progress.path is None
    assert progress.error is not None
    return progress.error


def test_a_gated_model_wants_a_token_that_opens_it(hub: FakeHub, cache: Path) -> None:
    """Without one nothing is fetched; with another the page to accept is named; with the right one it comes."""
    hub.add("org/gated", FILES, gated=True)
    nobody = error_of(pull(hub, cache, "org/gated"))
    assert nobody.code == "forbidden"
    assert nobody.hint == f"Accept them at {hub.url}/org/gated, then set HF_TOKEN or run `hf auth login`."
    assert hub.count("*/resolve/*") == 0
    other = error_of(pull(hub, cache, "org/gated", token="other"))
    assert (other.code, other.message) == ("forbidden", "The token does not open org/gated.")
    assert wanted_of(FILES) == snapshot_of(pull(hub, cache, "org/gated", token="good"))


def test_the_token_goes_to_the_endpoint_and_nowhere_else(hub: FakeHub, cache: Path) -> None:
    """Large files come from another address, which never sees it."""
    hub.add("org/gated", FILES, gated=True)
    pull(hub, cache, "org/gated", token="good")
    assert {seen.headers.get("authorization") for seen in hub.requests} == {"Bearer good"}
    assert hub.cdn_requests
    assert {seen.headers.get("authorization") for seen in hub.cdn_requests} == {None}


def test_a_token_of_this_user_is_not_found_by_accident(
    hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller decides which token is used; the environment of the process does not."""
    monkeypatch.setenv("HF_TOKEN", "secret")
    hub.add(NAME, FILES)
    assert pull(hub, cache).state == "done"
    assert {seen.headers.get("authorization") for seen in hub.requests} == {None}


def test_what_is_not_there_is_named_with_what_is_near(hub: FakeHub, cache: Path) -> None:
    """A name, and a revision."""
    hub.add(NAME, FILES)
    missing = error_of(pull(hub, cache, "mlx-community/tinny-4bit", token="good"))
    assert (missing.code, missing.hint) == ("model_not_found", f"Did you mean {NAME}?")
    revision = error_of(pull(hub, cache, revision="v9"))
    assert (revision.code, revision.message) == ("model_not_found", f"{NAME} has no revision v9.")


def test_a_renamed_model_is_followed_and_said(hub: FakeHub, cache: Path) -> None:
    """It is kept under the name that it has now."""
    hub.add("mlx-community/old", FILES)
    hub.rename("mlx-community/old", NAME)
    progress = pull(hub, cache, "mlx-community/old")
    assert wanted_of(FILES) == snapshot_of(progress)
    assert (progress.name, progress.renamed_from) == (NAME, "mlx-community/old")
    assert (cache / FOLDER).is_dir()


def test_revisions_are_kept_apart(hub: FakeHub, cache: Path) -> None:
    """A branch leads to its commit, a commit is its own name, and what they share is fetched once."""
    old = hub.add(NAME, FILES)
    changed = FILES | {"config.json": b'{"model_type": "qwen3"}'}
    new = hub.add(NAME, changed, revision="refs/pr/1")
    assert wanted_of(FILES) == snapshot_of(pull(hub, cache, revision=old))
    assert not (cache / FOLDER / "refs").exists()
    progress = pull(hub, cache, revision="refs/pr/1")
    assert wanted_of(changed) == snapshot_of(progress)
    assert progress.fetched_bytes == progress.total_bytes
    assert (cache / FOLDER / "refs" / "refs" / "pr" / "1").read_text() == new
    assert hub.count(place_of(WEIGHTS), method="GET") == 1


def test_too_many_requests_are_waited_out(hub: FakeHub, cache: Path) -> None:
    """Wherever the Hub says so: for the description, before a file and for a file."""
    hub.add(NAME, FILES)
    busy = {"status": 429, "headers": {"Retry-After": "0"}}
    hub.break_with(
        Mishap("/api/models/*", **busy),
        Mishap("*/config.json", method="HEAD", **busy),
        Mishap("*/README.md", method="GET", **busy),
    )
    assert wanted_of(FILES) == snapshot_of(pull(hub, cache))
    assert hub.count("/api/models/*") == 2


def test_a_hub_that_asks_to_wait_too_long_is_said(hub: FakeHub, cache: Path) -> None:
    """Nobody waits an hour without being asked."""
    hub.add(NAME, FILES)
    hub.break_with(Mishap("/api/models/*", times=None, status=429, headers={"Retry-After": "3600"}))
    error = error_of(pull(hub, cache))
    assert (error.code, error.retry_after_s) == ("unavailable", 3600.0)
    assert hub.count("/api/models/*") == 1


@pytest.mark.parametrize("resets", [False, True])
def test_a_dropped_connection_is_taken_up_again(hub: FakeHub, cache: Path, *, resets: bool) -> None:
    """Whether it ends early or breaks."""
    hub.add(NAME, FILES)
    hub.break_with(Mishap(place_of(WEIGHTS), method="GET", cut_after=90_000, resets=resets))
    assert wanted_of(FILES) == snapshot_of(pull(hub, cache))
    assert hub.count(place_of(WEIGHTS), method="GET") == 2


def test_content_that_changed_on_the_way_is_refused(hub: FakeHub, cache: Path) -> None:
    """The file goes, the job fails, the branch does not lead there; the next pull is well."""
    hub.add(NAME, FILES)
    hub.break_with(Mishap(place_of(WEIGHTS), method="GET", replace=lambda body: body[:-1] + b"?"))
    error = error_of(pull(hub, cache))
    assert error.code == "model_broken"
    assert error.message == (
        f"model-00000.safetensors of {NAME} did not arrive as {hub.url} says it is; it was removed."
    )
    assert list((cache / FOLDER / "snapshots").rglob("model*")) == []
    assert not (cache / FOLDER / "refs").exists()
    assert wanted_of(FILES) == snapshot_of(pull(hub, cache))
    assert hub.count("*/resolve/*/config.json", method="GET") == 1


def test_small_files_are_verified_too(hub: FakeHub, cache: Path) -> None:
    """Git's hash is as good."""
    hub.add(NAME, FILES)
    hub.break_with(Mishap("*/config.json", method="GET", replace=bytes.upper))
    assert "config.json" in error_of(pull(hub, cache)).message


def test_content_of_another_size_is_refused(hub: FakeHub, cache: Path) -> None:
    """However well the connection ends."""
    hub.add(NAME, FILES)
    hub.break_with(Mishap(place_of(WEIGHTS), method="GET", times=None, replace=lambda body: body[:1000]))
    error = error_of(pull(hub, cache))
    assert error.code == "model_broken"
    assert "model-00000.safetensors" in error.message


def test_files_that_were_damaged_before_are_fetched_again(hub: FakeHub, cache: Path) -> None:
    """Of the right size or not, while what was verified stays untouched."""
    hub.add(NAME, FILES)
    folder = Path(str(pull(hub, cache).path))
    for name, damaged in (("config.json", b"short"), ("model-00000.safetensors", bytes(len(WEIGHTS)))):
        (folder / name).resolve().write_bytes(damaged)
    progress = pull(hub, cache)
    assert wanted_of(FILES) == snapshot_of(progress)
    assert progress.fetched_bytes == len(FILES["config.json"]) + len(WEIGHTS)
    assert hub.count(place_of(WEIGHTS), method="GET") == 2
    assert hub.count("*/resolve/*/README.md", method="GET") == 1


def test_room_is_looked_for_before_anything_is_fetched(hub: FakeHub, cache: Path) -> None:
    """Both sizes are named; what is there already needs none."""
    hub.add(NAME, FILES)
    error = error_of(pull(hub, cache, margin_bytes=1 << 60))
    assert error.code == "disk_full"
    assert error.message.startswith(f"{NAME} needs 0 MiB more and 1,099,511,627,776 MiB are to stay free, but {cache}")
    assert hub.count("*/resolve/*") == 0
    pull(hub, cache)
    assert pull(hub, cache, margin_bytes=1 << 60).state == "done"


def test_offline_nothing_is_asked(hub: FakeHub, cache: Path) -> None:
    """And the command ends with the exit code for it."""
    from mlxm.cli.output import ExitCode, exit_code_of

    error = error_of(pull(hub, cache, offline=True))
    assert (error.code, hub.requests) == ("offline", [])
    assert exit_code_of(error.error()) == ExitCode.OFFLINE == 7


def test_a_hub_that_is_not_there_is_offline_too(cache: Path) -> None:
    """Its address is named."""
    with FakeHub() as gone:
        pass
    error = error_of(pull(gone, cache))
    assert error.code == "offline"
    assert gone.url in error.message


def test_a_model_without_weights_for_mlxm_is_refused(hub: FakeHub, cache: Path) -> None:
    """Before anything is fetched, with the way to find another; so are patterns that nothing fits."""
    hub.add("org/ggml", {"config.json": b"{}", "model.gguf": b"GGUF"})
    error = error_of(pull(hub, cache, "org/ggml"))
    assert (error.code, error.hint) == ("model_broken", "Look for a conversion: mlxm search ggml")

    async def use(downloads: Downloads) -> Progress:
        job = downloads.start("org/ggml", include=["*.md"])
        return [progress async for progress in job.events()][-1]

    assert error_of(with_downloads(hub, cache, use)).code == "invalid_request"
    assert hub.count("*/resolve/*") == 0


def test_a_path_that_leads_out_of_the_folder_is_refused(hub: FakeHub, cache: Path) -> None:
    """Whoever made the repository."""
    hub.add(NAME, FILES | {"../../escaped.json": b"{}"})
    assert error_of(pull(hub, cache)).code == "model_broken"
    assert not cache.exists()


@pytest.mark.parametrize(
    "headers",
    [
        {"ETag": '"../../../../escaped"', "X-Linked-Etag": '"../../../../escaped"'},
        {"ETag": '"/tmp/escaped"'},
        {"ETag": '".."'},
        {"X-Repo-Commit": "../../../escaped"},
        {"X-Repo-Commit": "b" * 40},
    ],
)
def test_headers_that_would_become_paths_are_checked(hub: FakeHub, cache: Path, headers: dict[str, str]) -> None:
    """No Hub can place a file outside its folder."""
    hub.add(NAME, FILES)
    hub.break_with(Mishap("*/resolve/*", times=None, headers=headers))
    error = error_of(pull(hub, cache))
    assert error.code == "unavailable"
    assert "the Hub would not give" in error.message
    assert [path for path in cache.parent.rglob("*") if path.is_file() and ".locks" not in path.parts] == []


@pytest.mark.parametrize("xet", ["auto", "on"])
def test_where_xet_storage_fails_http_follows(cache: Path, xet: str) -> None:
    """With another endpoint than the Hub's own it is not even tried."""
    with FakeHub(xet=True) as hub:
        hub.add(NAME, FILES)
        assert wanted_of(FILES) == snapshot_of(pull(hub, cache, xet=xet))
        assert (hub.count("/api/no-such-store") > 0) == (xet == "on")


def test_a_process_that_dies_is_told_with_its_last_words(hub: FakeHub, cache: Path) -> None:
    """And a later start goes on."""
    hub.add(NAME, FILES)
    gate = threading.Event()
    hub.break_with(Mishap(LARGE, method="GET", hold=gate))

    async def use(downloads: Downloads) -> Progress:
        job = downloads.start(NAME)
        async for progress in job.events():
            if progress.files:
                (child,) = psutil.Process(os.getpid()).children()
                child.kill()
                break
        return [progress async for progress in job.events()][-1]

    error = error_of(with_downloads(hub, cache, use))
    gate.set()
    assert error.code == "worker_died"
    assert "SIGKILL" in error.message
    assert pull(hub, cache).state == "done"


def test_a_cache_that_cannot_be_written_is_named(hub: FakeHub, tmp_path: Path) -> None:
    """A file lies where the folder should be."""
    hub.add(NAME, FILES)
    (tmp_path / "file").write_bytes(b"")
    error = error_of(pull(hub, tmp_path / "file" / "hub"))
    assert error.code == "store_failed"
    assert str(tmp_path / "file" / "hub") in error.message
