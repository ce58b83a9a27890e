"""What one request leaves behind: a row of the audit trail, true also for streams and for those that were cut short."""

from __future__ import annotations

import secrets
import time
from http import HTTPStatus
from typing import Any, Protocol

import msgspec

from mlxm.errors import Conflict, MlxmError, StoreError, Unavailable
from mlxm.server.errors import status_of
from mlxm.server.log import Log
from mlxm.store.audit import AuditRow
from mlxm.types import Ended, Event, ReasoningDelta, Started, TextDelta, ToolCallStarted


class Trail(Protocol):
    """Where rows go; the store's Audit is one."""

    async def record(self, row: AuditRow) -> None:
        """Keep `row` for good."""
        ...


class Entry:
    """Watches one request, and writes its row once."""

    def __init__(self, trail: Trail | None, log: Log, *, request_id: str, endpoint: str, dialect: str) -> None:
        self._trail = trail
        self._log = log
        self.request_id = request_id
        self._endpoint = endpoint
        self._dialect = dialect
        self.model: str | None = None
        self._started_at = time.time()
        self._start_s = time.monotonic()
        self._prepared_s: float | None = None
        self._ttft_s: float | None = None
        self._tokens_in = 0
        self._tokens_out = 0
        self._tokens_cached = 0
        self.is_closed = False

    def see(self, event: Event) -> None:
        """Take from an event what the row tells."""
        match event:
            case Started(prompt_tokens=prompt_tokens):
                self._prepared_s = self._elapsed_s()
                self._tokens_in = prompt_tokens
            case TextDelta(token_ids=token_ids) | ReasoningDelta(token_ids=token_ids):
                self._see_token()
                self._tokens_out += len(token_ids)
            case ToolCallStarted():
                self._see_token()
            case Ended(usage=usage):
                self._tokens_in = usage.prompt_tokens
                self._tokens_out = usage.completion_tokens
                self._tokens_cached = usage.cached_tokens

    def _see_token(self) -> None:
        if self._ttft_s is None:
            self._ttft_s = self._elapsed_s()

    async def close(self, error: MlxmError | None) -> None:
        """Write the row; only the first call counts. A trail that fails is logged, and fails no request."""
        if self.is_closed:
            return
        self.is_closed = True
        row = self._row(error)
        shown = _shown(row, error, self._prepared_s)
        if row.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            self._log.error("chat", **shown)
        else:
            self._log.info("chat", **shown)
        if self._trail is None:
            return
        try:
            await _keep(self._trail, row)
        except (StoreError, Conflict, Unavailable) as failure:
            self._log.error("audit_failed", request_id=self.request_id, reason=failure.message)

    def _row(self, error: MlxmError | None) -> AuditRow:
        return AuditRow(
            request_id=self.request_id,
            started_at=self._started_at,
            endpoint=self._endpoint,
            dialect=self._dialect,
            model=self.model,
            status=200 if error is None else status_of(error),
            error_code=None if error is None else error.code,
            duration_s=self._elapsed_s(),
            ttft_s=self._ttft_s,
            tokens_in=self._tokens_in,
            tokens_out=self._tokens_out,
            tokens_cached=self._tokens_cached,
        )

    def _elapsed_s(self) -> float:
        return time.monotonic() - self._start_s


async def _keep(trail: Trail, row: AuditRow) -> None:
    """Write a row; a client that names a second request like an earlier one gets a row of its own all the same."""
    try:
        await trail.record(row)
    except Conflict:
        await trail.record(msgspec.structs.replace(row, request_id=f"{row.request_id}.{secrets.token_hex(6)}"))


def _shown(row: AuditRow, error: MlxmError | None, prepared_s: float | None) -> dict[str, Any]:
    """What the log says about it; times of day are the log's own.

    Its phases end when the prompt is accepted, when the first token is there, and when the answer is complete.
    """
    return {
        "request_id": row.request_id,
        "model": row.model,
        "status": row.status,
        "error_code": row.error_code,
        "reason": None if error is None else error.message,
        "duration_ms": round(row.duration_s * 1000, 1),
        "prepared_ms": None if prepared_s is None else round(prepared_s * 1000, 1),
        "ttft_ms": None if row.ttft_s is None else round(row.ttft_s * 1000, 1),
        "tokens_in": row.tokens_in,
        "tokens_out": row.tokens_out,
    }
