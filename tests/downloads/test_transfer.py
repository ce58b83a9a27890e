from __future__ import annotations

import errno
from typing import Any

import httpx2
import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from mlxm.catalog.hub_files import RemoteFile
from mlxm.downloads import failures
from mlxm.downloads.frames import Fetch
from mlxm.downloads.transfer import FileMeter, Transfers, progress_class
from mlxm.errors import (
    DiskFull,
    Forbidden,
    InternalError,
    MlxmError,
    ModelBroken,
    ModelNotFound,
    Offline,
    StoreError,
    StoreReadOnly,
    Unavailable,
)
from mlxm.testing.fake_hub import FakeHub

ORDER = Fetch(
    name="a/b",
    revision="main",
    commit="c" * 40,
    cache="/cache",
    endpoint="https://hub.example",
    files=(),
    margin_bytes=0,
    num_parallel=1,
)
FILE = RemoteFile(path="model.safetensors", size_bytes=10)
REQUEST = httpx2.Request("GET", "https://hub.example/x")


def answer(status: int, headers: dict[str, str] | None = None) -> HfHubHTTPError:
    """What huggingface_hub makes of an answer."""
    return HfHubHTTPError("answered", response=httpx2.Response(status, headers=headers, request=REQUEST))


def caused_by(cause: BaseException) -> BaseException:
    """How huggingface_hub hides a cause."""
    error = LocalEntryNotFoundError("not here either")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (answer(404, {"X-Error-Code": "RepoNotFound"}), ModelNotFound, "a/b"),
        (answer(404, {"X-Error-Code": "EntryNotFound"}), ModelNotFound, "does not have that file"),
        (caused_by(answer(403, {"X-Error-Code": "GatedRepo"})), Forbidden, "terms"),
        (answer(429, {"Retry-After": "7"}), Unavailable, "7 s"),
        (answer(429), Unavailable, "60 s"),
        (answer(503), Unavailable, "503"),
        (caused_by(httpx2.ConnectError("refused")), Offline, "refused"),
        (httpx2.ConnectTimeout(""), Offline, "ConnectTimeout"),
        (httpx2.ReadError("reset"), Unavailable, "reset"),
        (OSError(errno.ENOSPC, "x"), DiskFull, "/cache is full"),
        (OSError(errno.EDQUOT, "x"), DiskFull, "/cache is full"),
        (OSError(errno.EROFS, "x"), StoreReadOnly, "/cache cannot be written"),
        (OSError(errno.EIO, "x"), StoreError, "Input/output error"),
        (OSError("Consistency check failed"), ModelBroken, "model.safetensors"),
        (RuntimeError("odd"), InternalError, "odd"),
    ],
)
def test_foreign_errors_are_translated(error: BaseException, kind: type[MlxmError], words: str) -> None:
    """Also those that huggingface_hub wraps in others of its own."""
    assert isinstance(error, failures.FOREIGN)
    found = failures.translated(error, ORDER, FILE)
    assert type(found) is kind
    assert words in found.message


def test_an_error_that_causes_itself_is_no_trap() -> None:
    """Chains of causes may run in a circle."""
    error = RuntimeError("odd")
    error.__cause__ = error
    assert isinstance(failures.translated(error, ORDER), InternalError)


def test_only_the_line_is_tried_again() -> None:
    """What the Hub says is an answer."""
    assert failures.is_transient(caused_by(httpx2.ReadTimeout("slow")))
    assert not failures.is_transient(answer(503))


def test_a_meter_follows_the_network_and_never_passes_the_size() -> None:
    """A second answer goes on where its range begins, or from the start."""
    meter = FileMeter("a", 100)
    assert meter.done_bytes == 0
    response = httpx2.Response(200, content=b"x" * 30, request=REQUEST)
    meter.follow(response)
    assert meter.done_bytes == response.num_bytes_downloaded
    meter.follow(httpx2.Response(206, headers={"Content-Range": "bytes 90-99/100"}, request=REQUEST))
    assert meter.done_bytes == 90
    meter.follow(httpx2.Response(200, request=REQUEST))
    assert meter.done_bytes == 0
    meter.follow(httpx2.Response(206, headers={"Content-Range": "nonsense"}, request=REQUEST))
    assert meter.done_bytes == 0
    meter.count(250)
    assert meter.done_bytes == 100


def test_what_xet_brings_is_counted_once() -> None:
    """Of what is written and what travels only the first."""
    meter = FileMeter("a", 100)
    bar: Any = progress_class(meter)(total=100, unit="B")
    with bar as entered:
        entered.update(40)
        entered.update(None)
        entered.update_transfer(30)
        entered.set_postfix_str("1 MB/s")
        entered.set_transfer_postfix_str("1 MB/s")
    bar.close()
    assert meter.done_bytes == 40


def test_the_token_stays_with_the_endpoint(hub: FakeHub) -> None:
    """Even where huggingface_hub would show it, and on every redirect."""
    with FakeHub() as elsewhere:
        transfers = Transfers(hub.url, ORDER.commit)
        with transfers._client() as client:
            for url in (hub.url, elsewhere.url):
                client.get(f"{url}/x", headers={"Authorization": "Bearer secret"})
    assert hub.requests[0].headers["authorization"] == "Bearer secret"
    assert "authorization" not in elsewhere.requests[0].headers
