"""A running server, as the commands of its owner see it: its management routes, opened by the token in its home.

Whatever it answers with is an MlxmError here as it was there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from mlxm.downloads.job import Progress
from mlxm.errors import BY_CODE, InternalError, MlxmError, ServerUnreachable
from mlxm.pool.status import ModelStatus, PoolStatus
from mlxm.store.control import UNIX_SCHEME, Control, read_control

T = TypeVar("T")

_DOWNLOADS: Final = "/manage/downloads"
_POOL: Final = "/manage/pool"
_TIMEOUT_S: Final = 30.0
_CREATED: Final = 201


class _Detail(msgspec.Struct, frozen=True):
    message: str
    code: str
    param: str | None = None


class _Problem(msgspec.Struct, frozen=True):
    error: _Detail
    hint: str | None = None


class Remote:
    """The management routes of one server; close it, or use it in a `with` block. Every call blocks."""

    def __init__(self, control: Control) -> None:
        self.url = control.url
        is_unix = control.url.startswith(UNIX_SCHEME)
        self._client = httpx.Client(
            base_url="http://localhost" if is_unix else control.url,
            transport=httpx.HTTPTransport(uds=control.url.removeprefix(UNIX_SCHEME)) if is_unix else None,
            headers={"Authorization": f"Bearer {control.token}"},
            timeout=_TIMEOUT_S,
            trust_env=False,  # a proxy would see the token, and finds nothing at an address of this machine
        )

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def downloads(self) -> tuple[Progress, ...]:
        """How every download of the server stands."""
        return _decode(self._ask("GET", _DOWNLOADS), tuple[Progress, ...])

    def download(self, job_id: str) -> Progress:
        """How one download stands; NotFound."""
        return _decode(self._ask("GET", f"{_DOWNLOADS}/{job_id}"), Progress)

    def start_download(
        self, name: str, revision: str | None = None, *, include: Sequence[str] = (), exclude: Sequence[str] = ()
    ) -> tuple[Progress, bool]:
        """Have the server fetch a model; whether that is new, or was under way."""
        order = {"name": name, "revision": revision, "include": list(include), "exclude": list(exclude)}
        answer = self._ask("POST", _DOWNLOADS, json=order)
        return _decode(answer, Progress), answer.status_code == _CREATED

    def cancel_download(self, job_id: str) -> Progress:
        """End a download; how it stands then."""
        return _decode(self._ask("DELETE", f"{_DOWNLOADS}/{job_id}"), Progress)

    def resume_download(self, job_id: str) -> Progress:
        """Start a download again that failed or was cancelled."""
        return _decode(self._ask("POST", f"{_DOWNLOADS}/{job_id}"), Progress)

    def pool(self) -> PoolStatus:
        """Which models are loaded."""
        return _decode(self._ask("GET", _POOL), PoolStatus)

    def model(self, name: str) -> ModelStatus:
        """How one model stands in the pool; NotFound."""
        return _decode(self._ask("GET", _place(name)), ModelStatus)

    def load(self, name: str, *, pin: bool = False, ttl_s: float | None = None, ctx: int | None = None) -> ModelStatus:
        """Have the server begin to load a model."""
        return _decode(self._ask("POST", _place(name), {"pin": pin, "ttl_s": ttl_s, "ctx": ctx}), ModelStatus)

    def restart(self, name: str, *, now: bool = False) -> ModelStatus:
        """Have the server replace a model's process."""
        return _decode(self._ask("POST", _place(name), {"restart": True, "now": now}), ModelStatus)

    def unload(self, name: str | None, *, now: bool = False) -> PoolStatus:
        """Have a model go, or all of them, and wait for that as long as requests are answered."""
        path = _POOL if name is None else _place(name)
        return _decode(self._ask("DELETE", f"{path}?now={'true' if now else 'false'}", timeout_s=None), PoolStatus)

    def _ask(self, method: str, path: str, json: Any = None, *, timeout_s: float | None = _TIMEOUT_S) -> httpx.Response:
        try:
            answer = self._client.request(method, path, json=json, timeout=timeout_s)
        except httpx.HTTPError as error:
            raise ServerUnreachable(
                f"The server at {self.url} does not answer: {error}.", hint="Look at its log, or start it again."
            ) from error
        if answer.is_success:
            return answer
        raise _error_of(answer)


def _place(name: str) -> str:
    return f"{_POOL}/{quote(name)}"


def find_server(home: Path) -> Remote | None:
    """The running server of a home, None when there is none. Blocks."""
    control = read_control(home)
    return None if control is None else Remote(control)


def _error_of(answer: httpx.Response) -> MlxmError:
    """The error that the server raised."""
    try:
        problem = msgspec.json.decode(answer.content, type=_Problem)
    except msgspec.DecodeError:
        return InternalError(f"The server answered with status {answer.status_code}.")
    kind = BY_CODE.get(problem.error.code, InternalError)
    return kind(problem.error.message, hint=problem.hint, param=problem.error.param)


def _decode(answer: httpx.Response, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(answer.content, type=kind)
    except msgspec.DecodeError as error:
        raise InternalError("The server is of another version: it gave an answer that is not understood.") from error
