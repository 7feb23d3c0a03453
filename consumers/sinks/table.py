"""The mapped table: messages become rows of a table of the user's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from consumers.settings import QueueSettings
from consumers.sinks.threads import SinkThreads
from forebay.brokers.api import Delivery
from forebay.errors import SettingsError, SinkUnavailable
from forebay.sinks import WriteResult
from forebay.storage.classify import TransientError
from forebay.storage.database import Database
from forebay.storage.mapping.create import prepare
from forebay.storage.mapping.plan import TableMismatch
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


def prepare_tables(queues: Mapping[str, QueueSettings], database: Database) -> None:
    """
    Hold the mapped tables of `queues` against the database, before anything is consumed.

    Those with `create` are made or completed first.

    Raises:
        SettingsError: they do not fit; one line per difference, with its repair.
        SinkUnavailable, SinkMisconfigured, TransientError: the database refused.
    """
    differences: list[str] = []
    for queue, settings in queues.items():
        if settings.table is None:
            continue
        try:
            prepare(database, settings.table.spec())
        except TableMismatch as error:
            differences += [f"queues.{queue}.table: {line}" for line in str(error).splitlines()]
    if len(differences) == 1:
        raise SettingsError(differences[0])
    if differences:
        raise SettingsError(
            "\n".join(["the tables are not what the settings say:", *(f"  {line}" for line in differences)])
        )
