"""Fetching a model, in this process or in a running server, while somebody watches how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import msgspec

from mlxm.catalog.characteristics import Answer, Characteristics, describe_config
from mlxm.catalog.hub import find_token
from mlxm.catalog.memory import MemoryEstimate, estimate
from mlxm.cli.installed import as_plain, judge, usual_context
from mlxm.cli.machine import Machine
from mlxm.downloads import Plan, Progress
from mlxm.errors import Forbidden, MlxmError, ModelNotFound, NotAuthenticated, NotFound
from mlxm.hub_access import HubAccess
from mlxm.remote import Remote

_POLL_S = 0.25

Show = Callable[[Progress], None]


class LeftRunning(KeyboardInterrupt):
    """Ctrl-C ended the watching; what was watched goes on."""


@dataclass(frozen=True, slots=True)
class Order:
    """What to fetch."""

    name: str
    revision: str | None
    include: tuple[str, ...]
    exclude: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Outlook:
    """What fetching would do, and whether the model would fit into memory then."""

    plan: Plan
    memory: MemoryEstimate | None
    fits: Answer

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        plan = {**as_plain(self.plan), "has_room": self.plan.has_room}
        return {**plan, "memory": as_plain(self.memory), "fits": self.fits}


async def fetch_here(order: Order, show: Show) -> Progress:
    """Fetch in this process, how it ended; being cancelled ends it, and keeps the files that are whole."""
    async with HubAccess.open() as access:
        job = access.downloads.start(order.name, order.revision, include=order.include, exclude=order.exclude)
        async with aclosing(job.events()) as events:
            async for progress in events:
                show(progress)
        return job.progress


def fetch_there(server: Remote, order: Order, show: Show) -> Progress:
    """Have the server fetch, how it ended; Ctrl-C ends what this command has begun, and not what others have."""
    progress, is_new = _start_watched(server, order)
    try:
        while True:
            show(progress)
            if progress.is_over:
                return progress
            time.sleep(_POLL_S)
            progress = server.download(progress.id)
    except KeyboardInterrupt as interrupt:
        if not is_new:
            raise LeftRunning from interrupt
        server.cancel_download(progress.id)
        raise


def hand_over(server: Remote, order: Order) -> Progress:
    """Have the server fetch, and leave it to it."""
    return _start(server, order)[0]


def cancel_there(server: Remote, name: str) -> tuple[Progress, ...]:
    """End every download of a model in the server; NotFound when there is none."""
    running = _running(server, name)
    if not running:
        raise NotFound(f"The server at {server.url} does not fetch {name}.", param="model")
    return tuple(server.cancel_download(each.id) for each in running)


def explain_refusal(error: MlxmError, name: str) -> MlxmError:
    """What the Hub refused the server, with the way out for who has a token where the server may have none."""
    if not isinstance(error, Forbidden | NotAuthenticated) or find_token() is None:
        return error
    way_out = f"The server uses its own token; to use this shell's: mlxm pull --here {name}"
    hint = way_out if error.hint is None else f"{error.hint} {way_out}"
    return type(error)(error.message, hint=hint, param=error.param)


async def look_ahead(order: Order, here: Machine) -> Outlook:
    """What fetching would do; nothing is changed."""
    async with HubAccess.open() as access:
        plan = await access.downloads.plan(order.name, order.revision, include=order.include, exclude=order.exclude)
        known = await _describe(access, plan)
    memory = None if known is None else estimate(known, plan.total_bytes, usual_context(known))
    return Outlook(plan=plan, memory=memory, fits=judge(memory, here))


async def _describe(access: HubAccess, plan: Plan) -> Characteristics | None:
    """What the model is, by its config.json on the Hub; None where that has none."""
    try:
        config = await access.api.config(plan.name, plan.commit)
    except ModelNotFound:
        return None
    weights = [file.size_bytes for file in plan.files if file.path.endswith(".safetensors")]
    known = describe_config(config, name=plan.name, size_bytes=plan.total_bytes)
    return msgspec.structs.replace(known, weights_bytes=sum(weights)) if weights else known


def _start_watched(server: Remote, order: Order) -> tuple[Progress, bool]:
    """Start it; Ctrl-C before the answer ends what has begun since, though its id was never told."""
    others = {each.id for each in _running(server, order.name)}
    try:
        return _start(server, order)
    except KeyboardInterrupt as interrupt:
        begun = [each for each in _running(server, order.name) if each.id not in others]
        for each in begun:
            server.cancel_download(each.id)
        if others and not begun:
            raise LeftRunning from interrupt
        raise


def _running(server: Remote, name: str) -> list[Progress]:
    return [each for each in server.downloads() if name in (each.name, each.renamed_from) and not each.is_over]


def _start(server: Remote, order: Order) -> tuple[Progress, bool]:
    return server.start_download(order.name, order.revision, include=order.include, exclude=order.exclude)
