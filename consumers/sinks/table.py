"""The mapped table: messages become rows of a table of the user's own."""

from __future__ import annotations

from collections.abc import Sequence

from consumers.sinks.threads import SinkThreads
from forebay.brokers.api import Delivery
from forebay.errors import SinkUnavailable
from forebay.sinks import WriteResult
from forebay.storage.classify import TransientError
from forebay.storage.mapping.store import MappedTable


class TableSink:
    """Writes batches through a MappedTable, in threads of its own. The database is the caller's to close."""

    def __init__(self, table: MappedTable, *, threads: int = 1) -> None:
        self.destination = table.spec.destination
        self._table = table
        self._threads = SinkThreads(f"forebay-{self.destination}", threads)

    async def write(self, batch: Sequence[Delivery]) -> list[WriteResult]:
        return await self._threads.run(self._table.write, batch)

    async def probe(self) -> None:
        await self._threads.run(self._check)

    async def close(self) -> None:
        self._threads.close()

    def _check(self) -> None:
        try:
            self._table.check()
        except TransientError as error:
            raise SinkUnavailable(str(error)) from error
