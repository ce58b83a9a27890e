"""What the commands about loaded models share: the running server, and how a model's state is shown."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlxm.cli.figures import show_bytes, show_duration, show_tokens
from mlxm.errors import BY_CODE, InternalError, MlxmError, ServerUnreachable
from mlxm.settings.home import home_folder

if TYPE_CHECKING:
    from mlxm.pool.status import ModelStatus, PoolStatus
    from mlxm.remote import Remote

HEADERS = (
    *("MODEL", "STATE", "MEM", "CPU", "CTX", "BLOCKS", "RUN", "WAIT"),
    *("TOK/S", "TTFT", "UPTIME", "EXPIRES", "KIND"),
)
EXPENDABLE = ("KIND", "UPTIME", "CPU", "BLOCKS", "TTFT", "CTX", "WAIT", "TOK/S")
_POLL_S = 0.2
_BAR_CELLS = 14


def need_server() -> Remote:
    """The running server; ServerUnreachable when there is none, with the way to have one."""
    from mlxm.remote import find_server

    server = find_server(home_folder())
    if server is None:
        raise ServerUnreachable("No server is running, so no models are loaded.", hint="Start one with: mlxm serve")
    return server


def wait_loaded(server: Remote, row: ModelStatus) -> ModelStatus:
    """Look until a model is loaded; raises what it could not be loaded for."""
    while not row.is_settled:
        time.sleep(_POLL_S)
        row = server.model(row.model)
    if row.state != "ready":
        raise failure_of(row)
    return row


def failure_of(row: ModelStatus) -> MlxmError:
    """Why a model is not loaded."""
    kind = BY_CODE.get(row.code or "", InternalError)
    return kind(f"{row.model} is not loaded." if row.reason is None else row.reason, param="model")


def cells_of(row: ModelStatus) -> Sequence[str]:
    """A model as a row of the table."""
    return (
        row.model,
        _state(row),
        _or_dash(None if row.memory_bytes is None else show_bytes(row.memory_bytes)),
        _or_dash(None if row.cpu_percent is None else f"{row.cpu_percent:.0f} %"),
        _or_dash(None if row.context is None else show_tokens(row.context)),
        _or_dash(None if row.blocks_used is None else f"{row.blocks_used}/{row.blocks_total}"),
        str(row.running),
        str(row.waiting),
        _or_dash(None if row.tokens_per_s is None else f"{row.tokens_per_s:.0f}"),
        _or_dash(None if row.ttft_p50_s is None else f"{row.ttft_p50_s * 1000:.0f} ms"),
        _or_dash(None if row.uptime_s is None else show_duration(row.uptime_s)),
        _expiry(row),
        _or_dash(row.kind),
    )


def footer_of(pool: PoolStatus) -> str:
    """How much of the budget is taken."""
    taken = pool.reserved_bytes + pool.others_bytes
    share = taken / pool.budget_bytes if pool.budget_bytes else 0.0
    filled = min(_BAR_CELLS, round(share * _BAR_CELLS))
    others = f", {show_bytes(pool.others_bytes)} of it by other processes" if pool.others_bytes else ""
    pressure = "" if pool.pressure == "normal" else f"; this machine is short of memory ({pool.pressure})"
    bar = "█" * filled + "░" * (_BAR_CELLS - filled)
    return f"{show_bytes(taken)} of {show_bytes(pool.budget_bytes)} taken{others}  {bar}  {share:.0%}{pressure}"


def _state(row: ModelStatus) -> str:
    if row.state == "loading" and row.total_bytes and row.done_bytes is not None:
        return f"loading {row.done_bytes / row.total_bytes:.0%}"
    return row.state


def _expiry(row: ModelStatus) -> str:
    if row.pinned:
        return "pinned"
    if row.in_use:
        return "in use"
    return _or_dash(None if row.expires_s is None else f"in {show_duration(row.expires_s)}")


def _or_dash(text: str | None) -> str:
    return "–" if text is None else text
