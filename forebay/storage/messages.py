"""
Batches of messages into the `messages` table: fast while all is well, careful when a row is bad.

A batch is one transaction. When it is refused because of its data, it is tried
again under savepoints and halved until the bad rows are alone: one among 1,000 costs
21 inserts, and its neighbours are stored. What was the database's fault is never
halved: the whole batch is run again, or handed back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from operator import attrgetter
from typing import Protocol

import sqlalchemy as sa
import stamina
import structlog

from forebay import ids
from forebay.brokers.api import Delivery
from forebay.errors import IdempotencyConflict, MessageRejected, SinkMisconfigured, SinkUnavailable
from forebay.sinks import WriteResult
from forebay.storage.classify import ConnectionLost, TransientError, classify
from forebay.storage.database import Database

log = structlog.get_logger()

_ATTEMPTS = 4

_NOT_THE_ROWS = (SinkUnavailable, SinkMisconfigured, TransientError)

_message_id = attrgetter("message.id")


class Statements(Protocol):
    """What differs by database; `forebay.storage.postgresql`, `mysql` and `sqlite` have these."""

    def insert(
        self, connection: sa.Connection, batch: Sequence[Delivery], *, payload: bool
    ) -> set[str] | None: ...

    def refuses_payload(self, connection: sa.Connection, delivery: Delivery) -> bool: ...

    def stored_digests(self, connection: sa.Connection, ids: Sequence[str]) -> dict[str, bytes]: ...

    def claim(
        self, connection: sa.Connection, destination: str, ids: Sequence[str], digests: Sequence[bytes]
    ) -> set[str]: ...

    def claimed_digests(
        self, connection: sa.Connection, destination: str, ids: Sequence[str]
    ) -> dict[str, bytes]: ...


def statements_for(dialect: str) -> Statements:
    if dialect == "postgresql":
        from forebay.storage import postgresql

        return postgresql
    if dialect == "mysql":
        from forebay.storage import mysql

        return mysql
    from forebay.storage import sqlite

    return sqlite


class MessageStore:
    """
    Writes to the `messages` table of one database. Safe to use from several threads.

    `payload=False` leaves the queryable JSON copy of bodies out.
    """

    def __init__(self, database: Database, *, payload: bool = True) -> None:
        self._database = database
        self._payload = payload
        self._sql = statements_for(database.dialect)

    def write(self, batch: Sequence[Delivery]) -> list[WriteResult]:
        """
        Store messages in one transaction; return one result per delivery, in the same order.

        An id that is stored already, or twice in the batch, is a duplicate when the
        bytes are the same and an IdempotencyConflict when they are not. Open dead
        letters of these messages are marked resolved.

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
                return [WriteResult(message_id=batch[0].message.id, error=error)]
            middle = len(batch) // 2
            return self.write(batch[:middle]) + self.write(batch[middle:])
        except TransientError as error:
            raise SinkUnavailable(f"gave up after {_ATTEMPTS} attempts: {error}") from error
        raise AssertionError("stamina neither returned nor raised")

    def _write_once(self, batch: Sequence[Delivery]) -> list[WriteResult]:
        if len({d.message.id for d in batch}) < len(batch):
            return self._write_carefully(batch)
        try:
            new = self._insert_all(batch)
        except _NOT_THE_ROWS:
            raise
        except Exception:
            # A row's fault, whether or not we know the error: which one's will be found out.
            return self._write_carefully(batch)
        if new is None:
            return [WriteResult(message_id=d.message.id) for d in batch]
        return self._results(batch, new)

    def _insert_all(self, batch: Sequence[Delivery]) -> set[str] | None:
        # Every writer inserts in the order of ids, so that two of them with the same
        # ids wait for each other instead of forming a deadlock.
        rows = sorted(batch, key=_message_id)
        try:
            # On PostgreSQL the insert is a single statement, a transaction by itself.
            with self._database.statement() as connection:
                return self._sql.insert(connection, rows, payload=self._payload)
        except ValueError as error:
            raise MessageRejected("an id in the batch is not a UUID") from error

    def _results(self, batch: Sequence[Delivery], new: set[str]) -> list[WriteResult]:
        known = sorted(d.message.id for d in batch if d.message.id not in new)
        with self._database.read() as connection:
            digests = self._sql.stored_digests(connection, known)
        return [
            WriteResult(message_id=d.message.id) if d.message.id in new else known_result(d, digests)
            for d in batch
        ]

    def _write_carefully(self, batch: Sequence[Delivery]) -> list[WriteResult]:
        results: dict[int, WriteResult] = {}
        with self._database.begin() as connection:
            waiting = list(enumerate(batch))
            while waiting:
                # Of deliveries with one id the first is written in this round, the next
                # one in the next: it then meets the first like any stored row.
                first: dict[str, tuple[int, Delivery]] = {}
                later = []
                for item in waiting:
                    if first.setdefault(item[1].message.id, item) is not item:
                        later.append(item)
                rows = [first[i] for i in sorted(first)]
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
        self, connection: sa.Connection, rows: list[tuple[int, Delivery]], results: dict[int, WriteResult]
    ) -> None:
        rejected = self._try(connection, rows, results, payload=self._payload)
        if rejected is None:
            return
        if len(rows) > 1:
            middle = len(rows) // 2
            self._bisect(connection, rows[:middle], results)
            self._bisect(connection, rows[middle:], results)
            return
        position, delivery = rows[0]
        # JSON that our check let pass and the database's own type refuses, such as 1e-20000.
        if (
            self._payload
            and self._refuses_payload(connection, delivery)
            and self._try(connection, rows, results, payload=False) is None
        ):
            return
        results[position] = WriteResult(message_id=delivery.message.id, error=rejected)

    def _refuses_payload(self, connection: sa.Connection, delivery: Delivery) -> bool:
        savepoint = connection.begin_nested()
        try:
            return self._sql.refuses_payload(connection, delivery)
        finally:
            savepoint.rollback()

    def _try(
        self,
        connection: sa.Connection,
        rows: list[tuple[int, Delivery]],
        results: dict[int, WriteResult],
        *,
        payload: bool,
    ) -> Exception | None:
        batch = [delivery for _, delivery in rows]
        savepoint = connection.begin_nested()
        try:
            new = self._sql.insert(connection, batch, payload=payload)
        except ValueError:
            savepoint.rollback()
            return MessageRejected("the id is not a UUID", error_class="InvalidId")
        except Exception as error:
            known = classify(error, self._database.dialect)
            if isinstance(known, _NOT_THE_ROWS):
                raise
            savepoint.rollback()
            return known
        savepoint.commit()
        old = [] if new is None else [d.message.id for d in batch if d.message.id not in new]
        digests = self._sql.stored_digests(connection, old) if old else {}
        for position, delivery in rows:
            is_new = new is None or delivery.message.id in new
            results[position] = (
                WriteResult(message_id=delivery.message.id) if is_new else known_result(delivery, digests)
            )
        return None


def known_result(delivery: Delivery, digests: dict[str, bytes]) -> WriteResult:
    """A duplicate or a conflict, by the digest recorded under the delivery's id."""
    message = delivery.message
    recorded = digests.get(message.id)
    if recorded is None:
        raise TransientError(f"{message.id} was pruned while it was written again")
    digest = hashlib.sha256(message.body).digest()
    if recorded == digest:
        return WriteResult(message_id=message.id, duplicate=True)
    conflict = IdempotencyConflict(message.id, ids.conflict_id_from_digest(message.id, digest))
    return WriteResult(message_id=message.id, error=conflict)
