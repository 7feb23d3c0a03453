"""
Batches into tables: fast while all is well, careful when a row is bad.

A batch is one transaction. When it is refused because of its data, it is tried
again under savepoints and halved until the bad rows are alone: one among 1,000 costs
21 inserts, and its neighbours are stored. What was the database's fault is never
halved: the whole batch is run again, or handed back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

import sqlalchemy as sa
import stamina
import structlog

from forebay.errors import MessageRejected, SinkMisconfigured, SinkUnavailable
from forebay.sinks import WriteResult
from forebay.storage.classify import ConnectionLost, TransientError, classify
from forebay.storage.database import Database

log = structlog.get_logger()

_ATTEMPTS = 4

NOT_THE_ROWS = (SinkUnavailable, SinkMisconfigured, TransientError)
"""Errors that say nothing about any row."""

T = TypeVar("T")
Item = TypeVar("Item", contravariant=True)


class Table(Protocol[Item]):
    """What a batch is written to; an item is what stands for a message and its row."""

    by_id: bool
    """Written in the order of ids, so that two writers of the same never form a deadlock; else as given."""

    def id_of(self, item: Item) -> str:
        """The id of its message."""
        ...

    def write_at_once(self, items: Sequence[Item]) -> list[WriteResult]:
        """All of `items`, whose ids are distinct, in one transaction; raises if any of them is bad."""
        ...

    def write_in(self, connection: sa.Connection, items: Sequence[Item]) -> list[WriteResult]:
        """As `write_at_once`, in the transaction of `connection`, under a savepoint of the caller's."""
        ...

    def begin_carefully(self, connection: sa.Connection) -> None:
        """Called at the beginning of a transaction in which bad rows are looked for; may raise."""
        ...

    def rescue(self, connection: sa.Connection, item: Item) -> WriteResult | None:
        """The last chance of a message that was refused; None: there is none."""
        ...


class BatchWriter(Generic[T]):
    """Writes batches to one table of one database. Safe to use from several threads if the table is."""

    def __init__(self, database: Database, table: Table[T]) -> None:
        self._database = database
        self._table = table

    def write(self, batch: Sequence[T]) -> list[WriteResult]:
        """
        Store messages in one transaction; return one result per item, in the same order.

        Raises:
            SinkUnavailable: nothing was stored, or the answer to COMMIT was lost; write
                the same batch again later.
            SinkMisconfigured: nothing was stored, and nothing will be until someone acts.
        """
        if not batch:
            return []
        try:
            for attempt in stamina.retry_context(
                on=(TransientError, ConnectionLost),
                attempts=_ATTEMPTS,
                timeout=None,
                wait_initial=0.05,
                wait_max=1.0,
                wait_jitter=0.05,
            ):
                with attempt:
                    try:
                        return self._write_once(batch)
                    except (TransientError, ConnectionLost) as error:
                        if attempt.num < _ATTEMPTS:
                            log.info("writing a batch again", reason=str(error), attempt=attempt.num)
                        raise
        except MessageRejected as error:
            # One of them spoiled the COMMIT, too late for a savepoint: a deferred constraint.
            if len(batch) == 1:
                return [WriteResult(message_id=self._table.id_of(batch[0]), error=error)]
            middle = len(batch) // 2
            return self.write(batch[:middle]) + self.write(batch[middle:])
        except TransientError as error:
            raise SinkUnavailable(f"gave up after {_ATTEMPTS} attempts: {error}") from error
        raise AssertionError("stamina neither returned nor raised")

    def _write_once(self, batch: Sequence[T]) -> list[WriteResult]:
        if len(set(map(self._table.id_of, batch))) < len(batch):
            return self._write_carefully(batch)
        try:
            return self._table.write_at_once(batch)
        except NOT_THE_ROWS:
            raise
        except Exception:
            # A row's fault, whether or not we know the error: which one's will be found out.
            return self._write_carefully(batch)

    def _write_carefully(self, batch: Sequence[T]) -> list[WriteResult]:
        results: dict[int, WriteResult] = {}
        with self._database.begin() as connection:
            self._table.begin_carefully(connection)
            waiting = list(enumerate(batch))
            while waiting:
                # Of items with one id the first is written in this round, the next one
                # in the next: it then meets the first like any stored row.
                first: dict[str, tuple[int, T]] = {}
                later = []
                for item in waiting:
                    if first.setdefault(self._table.id_of(item[1]), item) is not item:
                        later.append(item)
                rows = list(first.values())
                if self._table.by_id:
                    rows.sort(key=lambda item: self._table.id_of(item[1]))
                halves = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
                for half in filter(None, halves):
                    self._bisect(connection, half, results)
                waiting = later
        errors = [r.error for r in results.values()]
        if all(e is not None and not isinstance(e, MessageRejected) for e in errors):
            # Unknown, and with every row: rather the database's fault. The breaker is to hear of it.
            raise next(filter(None, errors))
        return [results[n] for n in range(len(batch))]

    def _bisect(
        self, connection: sa.Connection, rows: list[tuple[int, T]], results: dict[int, WriteResult]
    ) -> None:
        refused = self._try(connection, rows, results)
        if refused is None:
            return
        if len(rows) > 1:
            middle = len(rows) // 2
            self._bisect(connection, rows[:middle], results)
            self._bisect(connection, rows[middle:], results)
            return
        position, item = rows[0]
        results[position] = self._rescued(connection, item) or WriteResult(
            message_id=self._table.id_of(item), error=refused
        )

    def _try(
        self, connection: sa.Connection, rows: list[tuple[int, T]], results: dict[int, WriteResult]
    ) -> Exception | None:
        """Write `rows` under a savepoint; return why they were refused."""
        savepoint = connection.begin_nested()
        try:
            found = self._table.write_in(connection, [item for _, item in rows])
        except Exception as error:
            known = self._about_rows(error)
            savepoint.rollback()
            return known
        savepoint.commit()
        for (position, _), result in zip(rows, found, strict=True):
            results[position] = result
        return None

    def _rescued(self, connection: sa.Connection, item: T) -> WriteResult | None:
        savepoint = connection.begin_nested()
        try:
            result = self._table.rescue(connection, item)
        except Exception as error:
            self._about_rows(error)
            result = None
        if result is None:
            savepoint.rollback()
        else:
            savepoint.commit()
        return result

    def _about_rows(self, error: Exception) -> Exception:
        """
        `error` in our own words.

        Raises:
            SinkUnavailable, SinkMisconfigured, TransientError: it is not about the rows.
        """
        known = classify(error, self._database.dialect)
        if isinstance(known, NOT_THE_ROWS):
            raise error
        return known
