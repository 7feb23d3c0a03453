"""Moves dead letters from the broker, where they rest first, into the database, where they are read."""

from __future__ import annotations

from collections.abc import Sequence

from consumers.sinks.database import ping
from consumers.sinks.threads import SinkThreads
from forebay.brokers.api import Delivery
from forebay.errors import SinkMisconfigured, SinkUnavailable
from forebay.sinks import WriteResult
from forebay.storage.classify import TransientError
from forebay.storage.database import Database
from forebay.storage.dead_letters import DeadLetterStore

BATCH_SIZE = 100
MAX_WAIT = 0.1


class ArchiveSink:
    """
    A sink whose messages are dead letters and whose destination is the `dead_letters` table.

    So the archiver is a worker like any other: it pauses with a breaker of its own
    while the database is away, and the dead letters simply stay in the broker.
    A dead letter that the table does not take harms no other, and stays there too.
    """

    destination = "dead_letters"
    cheap_probe = True

    def __init__(self, database: Database, store: DeadLetterStore | None = None) -> None:
        self._database = database
        self._store = store or DeadLetterStore(database)
        self._threads = SinkThreads("forebay-archiver")

    async def write(self, batch: Sequence[Delivery]) -> list[WriteResult]:
        return await self._threads.run(self._archive, batch)

    async def probe(self) -> None:
        await self._threads.run(ping, self._database)

    async def close(self) -> None:
        self._threads.close()

    def _archive(self, batch: Sequence[Delivery]) -> list[WriteResult]:
        try:
            self._store.archive(batch)
        except (SinkUnavailable, SinkMisconfigured):
            raise
        except TransientError as error:
            raise SinkUnavailable(str(error)) from error
        except Exception as error:
            if len(batch) == 1:
                return [WriteResult(message_id=batch[0].message.id, error=error)]
            return [r for d in batch for r in self._archive([d])]
        return [WriteResult(message_id=d.message.id) for d in batch]
