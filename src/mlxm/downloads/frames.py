"""What a download's process and its parent say to each other; Hello comes first, as with every child."""

from __future__ import annotations

import msgspec

from mlxm.catalog.hub_files import RemoteFile
from mlxm.frames import Fault, Hello, Shutdown


class Fetch(msgspec.Struct, frozen=True, kw_only=True, tag="fetch"):
    """The one order: bring these files of a commit into the cache folder and verify them."""

    name: str
    revision: str
    commit: str
    cache: str
    endpoint: str
    files: tuple[RemoteFile, ...]
    token: str | None = None
    margin_bytes: int
    num_parallel: int


class Waiting(msgspec.Struct, frozen=True, kw_only=True, tag="waiting"):
    """Another process is fetching the same model."""

    pid: int | None


class Fetching(msgspec.Struct, frozen=True, kw_only=True, tag="fetching"):
    """How far the files are, and which are under way."""

    done_bytes: int
    num_done: int
    paths: tuple[str, ...] = ()


class Verifying(msgspec.Struct, frozen=True, kw_only=True, tag="verifying"):
    """How much has been read back."""

    verified_bytes: int
    paths: tuple[str, ...] = ()


class Fetched(msgspec.Struct, frozen=True, kw_only=True, tag="fetched"):
    """Every file is there and as the Hub says."""

    path: str
    fetched_bytes: int


class FetchFailed(msgspec.Struct, frozen=True, kw_only=True, tag="fetch_failed"):
    """It did not come to that."""

    fault: Fault


ToFetch = Fetch | Shutdown
FromFetch = Hello | Waiting | Fetching | Verifying | Fetched | FetchFailed
