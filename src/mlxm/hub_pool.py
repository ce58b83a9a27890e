"""What the owner of this machine tells the pool: load, unload, restart, keep; by names, and by the settings' file.

The file is looked at now and then: what was changed in it holds from then on, and a mistake in it changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import msgspec

from mlxm.errors import ConfigInvalid, MlxmError, ModelBroken, ModelNotFound
from mlxm.pool.options import LocalModel, PoolOptions
from mlxm.pool.pool import Pool
from mlxm.pool.status import ModelStatus, PoolStatus
from mlxm.router import Router

_LOOK_S = 1.0


class Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """What the settings say about the pool."""

    options: PoolOptions = PoolOptions()
    preload: tuple[str, ...] = ()


Reload = Callable[[], Wishes]
"""Reads the settings anew; blocks, and raises ConfigInvalid."""
Tell = Callable[[MlxmError], None]


class PoolOrders:
    """Carries out orders by the names that people use."""

    def __init__(self, pool: Pool, router: Router, tell: Tell) -> None:
        self._pool = pool
        self._router = router
        self._tell = tell
        self._tasks: list[asyncio.Task[None]] = []
        self._preloaded: tuple[str, ...] = ()

    def start(self, wishes: Wishes, config_path: Path, reload: Reload | None = None) -> None:
        """Load what is to be there from the start, and heed changes of the settings."""
        self._tasks.append(asyncio.create_task(self._preload(wishes.preload), name="preload"))
        if reload is not None:
            self._tasks.append(asyncio.create_task(self._heed(config_path, reload), name="watch the settings"))

    async def close(self) -> None:
        """Heed nothing any more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def load(
        self, name: str, *, pin: bool = False, ttl_s: float | None = None, context: int | None = None
    ) -> ModelStatus:
        """Begin to load a model; raises ModelNotFound, or ModelBroken when it cannot be run."""
        return self._pool.load(await self._router.resolve(name), pin=pin, ttl_s=ttl_s, context=context)

    async def unload(self, name: str, *, now: bool = False) -> None:
        """Have a model go, and wait until it has; NotFound."""
        await self._pool.unload(await self._name(name), now=now)

    async def unload_all(self, *, now: bool = False) -> None:
        """Have every model go, and wait until all have."""
        names = {row.model for row in self._pool.models()}
        await asyncio.gather(*(self._pool.unload(name, now=now) for name in names))

    async def restart(self, name: str, *, now: bool = False) -> ModelStatus:
        """Replace a model's process; NotFound."""
        return self._pool.restart(await self._name(name), now=now)

    async def status(self) -> PoolStatus:
        """How the pool stands."""
        return await self._pool.status()

    async def model(self, name: str) -> ModelStatus:
        """How one model stands; NotFound."""
        return self._pool.model(await self._name(name))

    async def watch(self, name: str) -> AsyncGenerator[ModelStatus]:
        """How a model stands, again and again until nothing is under way; NotFound."""
        async for row in self._pool.watch(await self._name(name)):
            yield row

    async def apply(self, wishes: Wishes) -> None:
        """Let other settings hold from now on."""
        self._pool.apply(wishes.options)
        if wishes.preload != self._preloaded:
            await self._preload(wishes.preload)

    async def _name(self, name: str) -> str:
        """The name that the pool knows; a model that is loaded may have gone from the disk."""
        if any(row.model == name for row in self._pool.models()):
            return name
        try:
            return (await self._router.resolve(name)).name
        except (ModelNotFound, ModelBroken):
            return name

    async def _preload(self, names: tuple[str, ...]) -> None:
        self._preloaded = names
        found: list[LocalModel] = []
        for name in names:
            try:
                found.append(await self._router.resolve(name))
            except MlxmError as error:
                self._tell(error)
        self._pool.keep(found)

    async def _heed(self, path: Path, reload: Reload) -> None:
        before = await asyncio.to_thread(_mark_of, path)
        while True:
            await asyncio.sleep(_LOOK_S)
            after = await asyncio.to_thread(_mark_of, path)
            if after == before:
                continue
            before = after
            try:
                wishes = await asyncio.to_thread(reload)
            except ConfigInvalid as error:
                self._tell(ConfigInvalid(f"{error.message} The settings from before it still hold.", hint=error.hint))
            else:
                await self.apply(wishes)


def _mark_of(path: Path) -> tuple[int, int, int] | None:
    """What changes whenever a file does; None when there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
