"""The default sink: every message becomes a row of the `messages` table."""

from __future__ import annotations

from collections.abc import Sequence

from consumers.sinks.threads import SinkThreads
from forebay.brokers.api import Delivery
from forebay.sinks import WriteResult
from forebay.storage.database import Database
from forebay.storage.messages import MessageStore


class DatabaseSink:
    """Writes batches through a MessageStore, in threads of its own. The database is the caller's to close."""

    destination = "database"

    def __init__(self, database: Database, store: MessageStore, *, threads: int = 1) -> None:
        self._database = database
        self._store = store
        self._threads = SinkThreads("forebay-database-sink", threads)

    async def write(self, batch: Sequence[Delivery]) -> list[WriteResult]:
        return await self._threads.run(self._store.write, batch)

    async def probe(self) -> None:
        await self._threads.run(self._database.ping)

    async def close(self) -> None:
        self._threads.close()
