"""Batches of messages into a mapped table, each once, with the record of that in the same transaction."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
import structlog

from forebay.brokers.api import Delivery
from forebay.errors import MessageRejected, SinkMisconfigured, SinkUnavailable
from forebay.ids import canonical
from forebay.sinks import WriteResult
from forebay.storage.batches import BatchWriter
from forebay.storage.database import Database
from forebay.storage.mapping.create import inspect
from forebay.storage.mapping.dialect import Writer, mapping_dialect
from forebay.storage.mapping.plan import Plan, TableMismatch
from forebay.storage.mapping.rows import RowMaker, Rows
from forebay.storage.mapping.spec import TableSpec
from forebay.storage.messages import known_result, statements_for
from forebay.storage.once import claim

log = structlog.get_logger()

_LOOKS = 3
"""How often a table that is altered again and again is looked at anew within one batch."""


class MappedTable:
    """
    Writes to one table of the user's own. Safe to use from several threads.

    The table is looked at before the first batch, and again whenever the database
    refuses something: a table that somebody has altered so that the mapping no longer
    fits pauses the queue, rather than pouring it into the dead letters.
    """

    def __init__(self, database: Database, spec: TableSpec) -> None:
        self.spec = spec
        self._database = database
        self._sql = statements_for(database.dialect)
        self._prepared: _Prepared | None = None

    def write(self, batch: Sequence[Delivery]) -> list[WriteResult]:
        """
        Store messages in one transaction; return one result per delivery, in the same order.

        An id that was processed before, or is twice in the batch, is a duplicate when
        the bytes are the same and an IdempotencyConflict when they are not. Messages
        that do not fit the table are rejected and harm no others. Open dead letters of
        the messages that were stored are marked resolved.

        Raises:
            SinkUnavailable: nothing was stored, or the answer to COMMIT was lost; write
                the same batch again later.
            SinkMisconfigured: nothing was stored, and nothing will be until someone acts.
        """
        if not batch:
            return []
        for look in range(1, _LOOKS + 1):
            prepared = self._prepared or self._look()
            try:
                return self._write(prepared, batch)
            except _Altered as altered:
                log.info("the table was altered, looking at it again", table=self.spec.full_name)
                self._prepared = None
                if look == _LOOKS:
                    raise altered.as_misconfigured() from altered
            except SinkMisconfigured:
                self._prepared = None  # Whatever is repaired will be seen.
                raise
        raise AssertionError("the last look returns or raises")

    def check(self) -> None:
        """
        Return if a write could work now.

        Raises:
            SinkUnavailable, SinkMisconfigured: with the reason.
        """
        self._look()

    def _look(self) -> _Prepared:
        try:
            found = inspect(self._database, self.spec)
        except TableMismatch as error:
            raise SinkMisconfigured(str(error)) from error
        self._prepared = _Prepared(self._database, found)
        return self._prepared

    def _write(self, prepared: _Prepared, batch: Sequence[Delivery]) -> list[WriteResult]:
        if self._overlapped(prepared, batch):
            return [WriteResult(message_id=d.message.id) for d in batch]
        rows, rejected = prepared.maker.make(batch)
        if rejected:
            # By the limits of the table as it was: somebody may have widened a column since.
            with self._database.read() as connection:
                prepared.require_unaltered(connection)
        writer = BatchWriter(self._database, _Batch(self._database, prepared, rows))
        stored = iter(writer.write(range(len(rows.deliveries))))
        results = [
            WriteResult(message_id=d.message.id, error=rejected[i]) if i in rejected else next(stored)
            for i, d in enumerate(batch)
        ]
        if rejected:
            self._recognize(batch, rejected, results)
        return results

    def _overlapped(self, prepared: _Prepared, batch: Sequence[Delivery]) -> bool:
        """
        Try the quick way, for batches in which all is well; False: nothing was stored.

        Raises:
            SinkUnavailable, SinkMisconfigured
        """
        if len(batch) < prepared.writer.overlaps_from or len({d.message.id for d in batch}) < len(batch):
            return False

        def make(part: Sequence[Delivery]) -> Rows:
            rows, rejected = prepared.maker.make(part)
            if rejected:
                raise _NotAll
            return rows

        try:
            with self._database.begin() as connection:
                prepared.writer.overlapped(connection, batch, make)
        except (SinkUnavailable, SinkMisconfigured):
            raise
        except Exception:
            return False  # Whose fault it is, if anyone's, the careful way finds out.
        return True

    def _recognize(
        self, batch: Sequence[Delivery], rejected: dict[int, MessageRejected], results: list[WriteResult]
    ) -> None:
        """What does not fit may have been stored before, when it did, or use another one's id."""
        ids = sorted({id for i in rejected if (id := batch[i].message.id) == canonical(id)})
        with self._database.read() as connection:
            recorded = self._sql.claimed_digests(connection, self.spec.destination, ids)
        for i in rejected:
            if batch[i].message.id in recorded:
                results[i] = known_result(batch[i], recorded)


class _NotAll(Exception):
    """Some message does not fit. Not of our tree: nobody else is to act on it."""


class _Altered(Exception):
    """The table is another one than the plan was made for. Not of our tree: nobody else is to act on it."""

    def __init__(self, table: str) -> None:
        super().__init__(table)
        self.table = table

    def as_misconfigured(self) -> SinkMisconfigured:
        return SinkMisconfigured(f"table {self.table} is being altered again and again")


class _Prepared:
    """What is made once for a table as it is."""

    def __init__(self, database: Database, plan: Plan) -> None:
        self.plan = plan
        self.dialect = mapping_dialect(database.dialect)
        self.writer: Writer = self.dialect.writer(plan)
        self.maker = RowMaker(plan)

    def require_unaltered(self, connection: sa.Connection) -> None:
        if self.dialect.describe(connection, self.plan.spec) != self.plan.description:
            raise _Altered(self.plan.spec.full_name)


class _Batch:
    """The rows of one batch, as the writer of batches wants them; an item is a row's position."""

    by_id = False  # Of two messages about the same thing the later one counts.

    def __init__(self, database: Database, prepared: _Prepared, rows: Rows) -> None:
        self._database = database
        self._prepared = prepared
        self._rows = rows

    def id_of(self, item: int) -> str:
        return self._rows.deliveries[item].message.id

    def write_at_once(self, items: Sequence[int]) -> list[WriteResult]:
        rows = self._some(items)
        with self._database.statement() as connection:
            self._prepared.writer.at_once(connection, rows)
        return [WriteResult(message_id=d.message.id) for d in rows.deliveries]

    def begin_carefully(self, connection: sa.Connection) -> None:
        self._prepared.require_unaltered(connection)

    def write_in(self, connection: sa.Connection, items: Sequence[int]) -> list[WriteResult]:
        rows = self._some(items)
        try:
            claims = claim(connection, self._prepared.plan.spec.destination, rows.deliveries)
        except ValueError:
            raise MessageRejected("the id is not a UUID", error_class="InvalidId") from None
        new = [i for i, d in enumerate(rows.deliveries) if d.message.id in claims]
        if new:
            self._prepared.writer.insert(connection, rows.some(new) if len(new) < len(items) else rows)
        return claims.results

    def rescue(self, connection: sa.Connection, item: int) -> WriteResult | None:
        return None

    def _some(self, items: Sequence[int]) -> Rows:
        return self._rows if len(items) == len(self._rows.deliveries) else self._rows.some(items)
