"""The default sink: every message becomes a row of the `messages` table."""

from __future__ import annotations

from collections.abc import Sequence

from consumers.sinks.threads import SinkThreads
from forebay.brokers.api import Delivery
from forebay.errors import SinkUnavailable
from forebay.sinks import WriteResult
from forebay.storage.classify import TransientError
from forebay.storage.database import Database
from forebay.storage.messages import MessageStore


class DatabaseSink:
    """Writes batches through a MessageStore, in threads of its own. The database is the caller's to close."""

    destination = "database"
    cheap_probe = True

    def __init__(self, database: Database, store: MessageStore, *, threads: int = 1) -> None:
        self._database = database
        self._store = store
        self._threads = SinkThreads("forebay-database-sink", threads)

    async def write(self, batch: Sequence[Delivery]) -> list[WriteResult]:
        return await self._threads.run(self._store.write, batch)

    async def probe(self) -> None:
        await self._threads.run(ping, self._database)

    async def close(self) -> None:
        self._threads.close()


def ping(database: Database) -> None:
    """
    Return if a write could work now. A database that is locked by another is away, for as long.

    Raises:
        SinkUnavailable, SinkMisconfigured: with the reason.
    """
    try:
        database.ping()
    except TransientError as error:
        raise SinkUnavailable(str(error)) from error
