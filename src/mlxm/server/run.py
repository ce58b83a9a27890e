"""The server's life: start everything at once, say when it is ready, serve, drain, close.

The port is open before anything else, so that early clients wait instead of failing, and the heavy imports of the HTTP
side run in a thread while the backend starts its processes.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mlxm.errors import InternalError, MlxmError
from mlxm.server.doors import LOOPBACK_HOSTS, Doors
from mlxm.server.limits import Limits, Timeouts
from mlxm.server.listen import open_listener, open_unix_listener
from mlxm.server.live import Live
from mlxm.server.log import Log
from mlxm.server.stop import Stop
from mlxm.settings import Settings
from mlxm.store.audit import Audit, AuditRow
from mlxm.store.control import UNIX_SCHEME, Control, new_control, publish_control, withdraw_control
from mlxm.store.db import Database
from mlxm.store.lock import HomeLock
from mlxm.store.look import DATABASE_NAME
from mlxm.types import Backend, Models

if TYPE_CHECKING:
    from mlxm.downloads import Downloads
    from mlxm.hub_pool import PoolOrders
    from mlxm.server.embedded import EmbeddedServer

# After the drain: how long the last words may take, then the connections, then the backend.
LAST_WORDS_S = 2.0
CONNECTIONS_S = 3.0
BACKEND_S = 10.0
HURRIED_S = 0.3


class Served(Backend, Models, Protocol):
    """A backend with a life of its own, which knows its models; the hub is one."""

    async def start(self) -> None:
        """Begin; afterwards `ready` tells whether requests are served."""
        ...

    async def close(self) -> None:
        """Free everything; also when `start` was cut short."""
        ...

    def ready(self) -> str | None:
        """Why requests are not served, or None."""
        ...

    async def downloads(self) -> Downloads:
        """What fetches models, made when first asked for."""
        ...

    @property
    def orders(self) -> PoolOrders | None:
        """What takes orders about loaded models; None where there are none."""
        ...


MakeBackend = Callable[[Callable[[MlxmError], None], Callable[[str, str], None]], Served]
"""Makes the backend, given what to call when one of its processes dies, and when one of them says something."""


def run_server(
    make_backend: MakeBackend, settings: Settings, announce: Callable[[str], None], *, uds: Path | None = None
) -> bool:
    """Be the one server of the home until a signal ends it; `announce` gets the URL once requests are served.

    With `uds` it listens on a socket at that path, and on no port; its URL is unix: and the path. Returns False when a
    second signal cut the end short. Raises AlreadyRunning, PortInUse, OpenWithoutKey, and what backend and store raise
    when they cannot start.
    """
    with HomeLock(settings.home):
        listener = _listen(settings, uds)
        try:
            with listener:
                return asyncio.run(_run(make_backend, settings, listener, announce))
        finally:
            if uds is not None:
                uds.unlink(missing_ok=True)


def _listen(settings: Settings, uds: Path | None) -> socket.socket:
    if uds is None:
        return open_listener(settings.server.host, settings.server.port)
    return open_unix_listener(uds)


async def _run(
    make_backend: MakeBackend,
    settings: Settings,
    listener: socket.socket,
    announce: Callable[[str], None],
) -> bool:
    control = new_control(_url_of(listener))
    log = Log(settings.log.level, settings.log.format)

    def tell_death(error: MlxmError) -> None:
        log.error("process_died", error_code=error.code, reason=error.message)

    def tell_words(name: str, words: str) -> None:
        log.info("process_said", process=name, words=words)

    try:
        life = ServerLife(make_backend(tell_death, tell_words), settings, listener, control, log)
        return await life.run(lambda: announce(control.url))
    finally:
        await asyncio.to_thread(withdraw_control, settings.home)


def _url_of(listener: socket.socket) -> str:
    if listener.family == socket.AF_UNIX:
        return f"{UNIX_SCHEME}{listener.getsockname()}"
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class LateTrail:
    """The audit trail of a database that may still be opening."""

    def __init__(self, opening: asyncio.Task[Database]) -> None:
        self._opening = opening

    async def record(self, row: AuditRow) -> None:
        """Keep `row` for good."""
        await Audit(await asyncio.shield(self._opening)).record(row)


class ServerLife:
    """One run, from the open port to the last connection."""

    def __init__(
        self, backend: Served, settings: Settings, listener: socket.socket, control: Control, log: Log
    ) -> None:
        self._backend = backend
        self._settings = settings
        self._listener = listener
        self._control = control
        self._live = Live()
        self._log = log
        self._stop = Stop()
        self._starting = asyncio.create_task(backend.start())
        self._opening = asyncio.create_task(Database.open(settings.home / DATABASE_NAME))
        self._publishing = asyncio.create_task(asyncio.to_thread(publish_control, settings.home, control))

    async def run(self, announce: Callable[[], None]) -> bool:
        """Serve until told to stop; False when that was said twice."""
        self._stop.listen()
        try:
            server = await asyncio.to_thread(self._make_server)
            await self._serve(server, announce)
        finally:
            await self._close()
        return not self._stop.insisted.is_set()

    def _make_server(self) -> EmbeddedServer:
        """Import and build the HTTP side; it takes longer than all the rest, so it runs in a thread."""
        from mlxm.server.embedded import EmbeddedServer  # noqa: PLC0415  # as above
        from mlxm.server.services import Services  # noqa: PLC0415  # as above

        services = Services(
            backend=self._backend,
            ready=self._why_not_ready,
            trail=LateTrail(self._opening),
            limits=_limits(self._settings),
            timeouts=_timeouts(self._settings),
            doors=_doors(self._settings),
            live=self._live,
            log=self._log,
            control_token=self._control.token,
            downloads=self._backend.downloads,
            orders=self._backend.orders,
            models=self._backend,
            database=self._database,
            keep_responses_s=self._settings.server.keep_responses_s,
        )
        return EmbeddedServer(services, self._listener)

    async def _database(self) -> Database:
        return await asyncio.shield(self._opening)

    def _why_not_ready(self) -> str | None:
        if not self._starting.done():
            return "the processes behind it are not up yet."
        if not self._opening.done():
            return "the database is not open yet."
        return self._backend.ready()

    async def _serve(self, server: EmbeddedServer, announce: Callable[[], None]) -> None:
        serving = asyncio.create_task(server.serve())
        try:
            if await self._until_stopped(serving, {self._starting, self._opening, self._publishing}):
                announce()
                await self._log.open()
                await self._until_stopped(serving, set())
            await self._drain()
        finally:
            server.stop()
            await self._wait(serving, CONNECTIONS_S)

    async def _until_stopped(self, serving: asyncio.Task[None], work: set[asyncio.Task[Any]]) -> bool:
        """Wait until all of `work` is done, True, or a signal asks to stop, False."""
        asked: asyncio.Task[Any] = asyncio.create_task(self._stop.asked.wait())
        pending = {asked, serving, *work}
        try:
            while pending & work or not work:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
                if asked in done:
                    return False
                if serving in done:
                    raise InternalError("The HTTP server ended by itself.")
        finally:
            await _end(asked)
        return True

    async def _drain(self) -> None:
        """Let what runs finish, and tell what has not finished in time that it ends."""
        self._live.is_draining = True
        self._log.info("draining", num_requests=len(self._live.request_ids))
        if not await self._wait(asyncio.create_task(self._live.idle.wait()), self._settings.server.drain_s):
            self._live.end_all()
            await self._wait(asyncio.create_task(self._live.idle.wait()), LAST_WORDS_S)

    async def _close(self) -> None:
        """Free the backend, and then the database, to which the last answers may still write."""
        await _end(self._starting)
        try:
            await self._wait(asyncio.create_task(self._backend.close()), BACKEND_S)
        finally:
            await asyncio.wait({self._opening, self._publishing})
            if self._opening.exception() is None:
                await self._opening.result().close()
            await self._log.open()

    async def _wait(self, work: asyncio.Task[Any], within_s: float) -> bool:
        """Wait for `work`, which is cancelled when it takes too long or is not done soon after a second signal.

        Whether it was done in time.
        """
        insisting = asyncio.create_task(self._stop.insisted.wait())
        await asyncio.wait({work, insisting}, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        if insisting.done():
            await asyncio.wait({work}, timeout=HURRIED_S)
        await _end(insisting)
        if work.done():
            work.result()
            return True
        await _end(work)
        return False


def _limits(settings: Settings) -> Limits:
    server = settings.server
    return Limits(
        max_body_bytes=server.max_body_bytes,
        body_timeout_s=server.body_timeout_s,
        send_timeout_s=server.send_timeout_s,
        max_requests=server.max_requests,
    )


def _timeouts(settings: Settings) -> Timeouts:
    timeouts = settings.timeouts
    return Timeouts(local_s=timeouts.local_s, chat_s=timeouts.chat_s, completions_s=timeouts.completions_s)


def _doors(settings: Settings) -> Doors:
    """It goes by the names of this machine's loopback, by the address it listens on, and by those that were set."""
    server = settings.server
    host = f"[{server.host}]" if ":" in server.host else server.host
    names = (host, *server.allowed_hosts)
    return Doors(
        hosts=LOOPBACK_HOSTS | {name.lower() for name in names},
        origins=frozenset(origin.lower() for origin in server.allowed_origins),
    )


async def _end(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait for it; what it failed with has been told, or does not matter any more."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
