"""Write numbered rows from several tasks at once, and say each number only after its write was answered."""

import asyncio
import os
import sys
from pathlib import Path

from mlxm.store.db import Database


async def write_on(db: Database, first: int, step: int) -> None:
    """Never ends by itself: the test kills this process."""
    number = first
    while True:
        await db.write(lambda connection, number=number: connection.execute("INSERT INTO kept VALUES (?)", (number,)))
        os.write(1, f"{number}\n".encode())
        number += step


async def main() -> None:
    """Open the database named first, and start numbering at the second argument."""
    db = await Database.open(Path(sys.argv[1]))
    first, tasks = int(sys.argv[2]), 8
    await asyncio.gather(*(write_on(db, first + task, tasks) for task in range(tasks)))


asyncio.run(main())
