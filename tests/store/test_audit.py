from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from mlxm.errors import Conflict, StoreError
from mlxm.store.audit import Audit, AuditRow
from mlxm.store.db import Database

FULL = AuditRow(
    request_id="req_0123456789ab",
    started_at=1_800_000_000.25,
    endpoint="/v1/chat/completions",
    dialect="openai",
    model="mlxm/tiny",
    status=503,
    error_code="overloaded",
    duration_s=1.5,
    ttft_s=0.25,
    tokens_in=11,
    tokens_out=7,
    tokens_cached=3,
)
BARE = AuditRow(request_id="req_1", started_at=1.0, endpoint="/v1/models", status=200, duration_s=0.0)


def test_rows_come_back_as_they_were_recorded_newest_first(tmp_path: Path) -> None:
    """Each field in its place, absent ones as None, no more rows than asked for."""

    async def main() -> None:
        async with await Database.open(tmp_path / "mlxm.db") as db:
            audit = Audit(db)
            await audit.record(FULL)
            await audit.record(BARE)
            assert await audit.recent(10) == (FULL, BARE)
            assert await audit.recent(1) == (FULL,)
            assert await audit.recent(0) == ()

    asyncio.run(main())


def test_a_request_id_is_recorded_once(tmp_path: Path) -> None:
    """The first row stays as it is."""

    async def main() -> None:
        async with await Database.open(tmp_path / "mlxm.db") as db:
            audit = Audit(db)
            await audit.record(FULL)
            with pytest.raises(Conflict, match=FULL.request_id):
                await audit.record(msgspec.structs.replace(FULL, status=200))
            assert await audit.recent(10) == (FULL,)

    asyncio.run(main())


def test_a_row_without_an_endpoint_is_a_failure_of_the_store(tmp_path: Path) -> None:
    """Only a repeated id is a conflict."""

    async def main() -> None:
        async with await Database.open(tmp_path / "mlxm.db") as db:
            broken = msgspec.structs.replace(BARE, endpoint=None)
            with pytest.raises(StoreError, match="NOT NULL"):
                await Audit(db).record(broken)

    asyncio.run(main())
