"""The whole error tree: every failure mlxm reports, with a code for programs and a hint for people.

MlxmError
├── InvalidRequest            the caller must change something
│   ├── UnsupportedParameter
│   └── ContextTooLong
├── NotFound
│   └── ModelNotFound
├── NotAuthenticated / Forbidden
├── Conflict
│   ├── AlreadyRunning
│   └── PortInUse
├── Unavailable               the same call may work later
│   ├── Overloaded
│   ├── Draining
│   ├── OutOfMemory
│   ├── WorkerDied
│   └── ServerUnreachable
├── TimedOut / Cancelled
├── Offline                   the network is needed and is not there, or not to be used
├── ModelBroken               files on disk that cannot be used
├── ConfigInvalid
│   └── OpenWithoutKey        a bind beyond this machine that nothing would protect
├── StoreError
│   ├── StoreReadOnly / DiskFull
│   └── SecretUnreadable
├── ProtocolMismatch          two versions of mlxm talk to each other
└── InternalError
"""

from __future__ import annotations


class MlxmError(Exception):
    """A failure that can be shown as it is: what happened, and what to do next."""

    code = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.param = param
        self.retry_after_s = retry_after_s


class InvalidRequest(MlxmError):
    code = "invalid_request"


class UnsupportedParameter(InvalidRequest):
    code = "unsupported_parameter"


class ContextTooLong(InvalidRequest):
    code = "context_length_exceeded"


class NotFound(MlxmError):
    code = "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class NotAuthenticated(MlxmError):
    code = "not_authenticated"


class Forbidden(MlxmError):
    code = "forbidden"


class Conflict(MlxmError):
    code = "conflict"


class AlreadyRunning(Conflict):
    code = "already_running"


class PortInUse(Conflict):
    code = "port_in_use"


class Unavailable(MlxmError):
    code = "unavailable"


class Overloaded(Unavailable):
    code = "overloaded"


class Draining(Unavailable):
    code = "draining"


class OutOfMemory(Unavailable):
    code = "out_of_memory"


class WorkerDied(Unavailable):
    code = "worker_died"


class ServerUnreachable(Unavailable):
    code = "server_unreachable"


class TimedOut(MlxmError):
    code = "timed_out"


class Cancelled(MlxmError):
    code = "cancelled"


class Offline(MlxmError):
    code = "offline"


class ModelBroken(MlxmError):
    code = "model_broken"


class ConfigInvalid(MlxmError):
    code = "config_invalid"


class OpenWithoutKey(ConfigInvalid):
    code = "open_without_key"


class StoreError(MlxmError):
    code = "store_failed"


class StoreReadOnly(StoreError):
    code = "store_read_only"


class DiskFull(StoreError):
    code = "disk_full"


class SecretUnreadable(StoreError):
    code = "secret_unreadable"


class ProtocolMismatch(MlxmError):
    code = "protocol_mismatch"


class InternalError(MlxmError):
    code = "internal_error"


def _tree(root: type[MlxmError]) -> dict[str, type[MlxmError]]:
    """Every class below `root` by its code."""
    found: dict[str, type[MlxmError]] = {}
    for child in root.__subclasses__():
        found[child.code] = child
        found.update(_tree(child))
    return found


BY_CODE = _tree(MlxmError)
