"""What the routes work with: built once at the top, and passed down."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mlxm.server.doors import Doors
from mlxm.server.entry import Trail
from mlxm.server.limits import Limits, Timeouts
from mlxm.server.live import Live
from mlxm.server.log import Log
from mlxm.store.db import Database
from mlxm.types import Backend, Models

if TYPE_CHECKING:
    from mlxm.downloads import Downloads
    from mlxm.hub_pool import PoolOrders


def _always_ready() -> str | None:
    return None


@dataclass(frozen=True, slots=True)
class Services:
    """The collaborators of every route; `ready` says why requests are not served yet, or None.

    Without a `control_token` nobody may manage. `downloads` are made when first asked for. Responses are stored
    where there is a `database`, for `keep_responses_s`.
    """

    backend: Backend
    ready: Callable[[], str | None] = _always_ready
    trail: Trail | None = None
    limits: Limits = field(default_factory=Limits)
    timeouts: Timeouts = field(default_factory=Timeouts)
    doors: Doors = field(default_factory=Doors)
    live: Live = field(default_factory=Live)
    log: Log = field(default_factory=Log)
    control_token: str | None = None
    downloads: Callable[[], Awaitable[Downloads]] | None = None
    orders: PoolOrders | None = None
    models: Models | None = None
    database: Callable[[], Awaitable[Database]] | None = None
    keep_responses_s: float = 0.0
