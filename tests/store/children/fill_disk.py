"""Fill a small disk with rows, report the error, then make room and report that writing works again."""

import asyncio
import sys
from pathlib import Path

from mlxm.errors import DiskFull
from mlxm.store.db import Database


async def main() -> None:
    """Use the folder named first, a disk of its own."""
    home = Path(sys.argv[1])
    ballast = home / "ballast"
    ballast.write_bytes(bytes(256 * 1024))
    db = await Database.open(home / "mlxm.db")
    await db.write(lambda connection: connection.execute("CREATE TABLE kept (content BLOB)"))
    kept = 0
    try:
        while True:
            await db.write(lambda connection: connection.execute("INSERT INTO kept VALUES (zeroblob(20000))"))
            kept += 1
    except DiskFull as error:
        print(error.message)  # noqa: T201 - the test reads it
    rows = await db.read(lambda connection: connection.execute("SELECT count(*) FROM kept").fetchone()[0])
    assert rows == kept > 0
    ballast.unlink()
    await db.write(lambda connection: connection.execute("INSERT INTO kept VALUES ('after')"))
    checked = await db.read(lambda connection: connection.execute("PRAGMA integrity_check").fetchone()[0])
    await db.close()
    print(checked)  # noqa: T201 - the test reads it


asyncio.run(main())
