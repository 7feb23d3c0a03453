"""What starting up does while the database is not ready yet."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

from forebay.cli._process import until_reachable
from forebay.storage.database import Database
from forebay.storage.schema import migrate, require_current
from forebay.storage.settings import DatabaseSettings


async def test_a_database_that_another_process_has_locked_is_waited_for(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/forebay.db", DatabaseSettings(lock_timeout=0.01))
    migrate(database)
    met = asyncio.Event()
    loop = asyncio.get_running_loop()

    def check(checked: Database) -> None:
        try:
            require_current(checked)
        except Exception:
            loop.call_soon_threadsafe(met.set)
            raise

    with closing(sqlite3.connect(database.path or "", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        waiting = asyncio.create_task(until_reachable(database, check, asyncio.Event()))
        await asyncio.wait_for(met.wait(), 10)
    reachable = await asyncio.wait_for(waiting, 10)
    database.dispose()

    assert reachable
