"""The border to huggingface_hub, its HTTP client and the file system: what they raise becomes an MlxmError."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import httpx2
from huggingface_hub.errors import HfHubHTTPError

from mlxm.catalog import hub_errors
from mlxm.catalog.hub_files import RemoteFile
from mlxm.downloads.frames import Fetch
from mlxm.errors import DiskFull, InternalError, MlxmError, ModelBroken, StoreError, StoreReadOnly

FOREIGN = (httpx2.HTTPError, OSError, RuntimeError, ValueError)
"""What a fetch may end with that is no mistake of ours."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_TOO_MANY = 429
_SOME_TIME_S = 60.0
_MIB = 1024 * 1024


def translated(error: BaseException, order: Fetch, file: RemoteFile | None = None) -> MlxmError:
    """What an exception of FOREIGN means; huggingface_hub wraps causes in its own, so all of them are looked at."""
    for each in _chain(error):
        match each:
            case HfHubHTTPError():
                return _by_answer(each, order)
            case httpx2.ConnectError() | httpx2.ConnectTimeout():
                return hub_errors.unreachable(order.endpoint, _words(each))
            case httpx2.TransportError():
                return hub_errors.interrupted(order.endpoint, _words(each))
    if isinstance(error, OSError) and error.errno is not None:
        return _by_errno(error.errno, order)
    if isinstance(error, OSError) and file is not None:
        return wrong_content(order, file)
    return InternalError(f"Fetching {order.name} failed: {_words(error)}")


def is_transient(error: BaseException) -> bool:
    """Whether the line, not the Hub, is to blame, so that another try may do."""
    return any(isinstance(each, httpx2.TransportError) for each in _chain(error))


def wrong_content(order: Fetch, file: RemoteFile) -> ModelBroken:
    """What came is not what the Hub announced."""
    return ModelBroken(
        f"{file.path} of {order.name} did not arrive as {order.endpoint} says it is; it was removed.",
        hint="Pull again. If it stays so, something between here and the Hub changes files: a proxy, or HF_ENDPOINT.",
    )


def disk_full(order: Fetch, needed_bytes: int, free_bytes: int) -> DiskFull:
    """Not enough room, said before anything is fetched."""
    return DiskFull(
        f"{order.name} needs {_mib(needed_bytes)} more and {_mib(order.margin_bytes)} are to stay free, "
        f"but {order.cache} has {_mib(free_bytes)} left.",
        hint="Free some space (`mlxm ls`, `mlxm rm`, `mlxm prune`), or set HF_HOME to a folder on another disk.",
    )


def _by_answer(error: HfHubHTTPError, order: Fetch) -> MlxmError:
    status = error.response.status_code
    if status == _TOO_MANY:
        asked = error.response.headers.get("Retry-After", "")
        return hub_errors.rate_limited(order.endpoint, float(asked) if asked.isdigit() else _SOME_TIME_S)
    return hub_errors.by_status(
        order.endpoint,
        order.name,
        order.commit,
        status=status,
        code=error.response.headers.get("X-Error-Code"),
        has_token=order.token is not None,
    )


def _by_errno(number: int, order: Fetch) -> MlxmError:
    if number in _FULL:
        return DiskFull(
            f"The disk of {order.cache} is full.",
            hint="Free some space, then pull again: files that are whole are kept.",
        )
    if number in _READ_ONLY:
        return StoreReadOnly(
            f"{order.cache} cannot be written.",
            hint="Make the folder writable for this user, or set HF_HOME to one that is.",
        )
    return StoreError(f"{order.cache} could not be used: {os.strerror(number)}.")


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        yield at
        at = at.__context__ if at.__cause__ is None else at.__cause__


def _words(error: BaseException) -> str:
    words = str(error).strip().rstrip(".")
    return words or type(error).__name__


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / _MIB:,.0f} MiB"
