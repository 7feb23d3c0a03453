"""Batches of messages into the `messages` table."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from operator import attrgetter
from typing import Protocol

import sqlalchemy as sa

from forebay import ids
from forebay.brokers.api import Delivery
from forebay.errors import IdempotencyConflict, MessageRejected
from forebay.sinks import WriteResult, all_stored
from forebay.storage.batches import BatchWriter
from forebay.storage.classify import TransientError
from forebay.storage.database import Database

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
        self._writer = BatchWriter(database, _Messages(database, payload))

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
        return self._writer.write(batch)


class _Messages:
    """The table, as the writer of batches wants it."""

    by_id = True

    def __init__(self, database: Database, payload: bool) -> None:
        self._database = database
        self._payload = payload
        self._sql = statements_for(database.dialect)

    def id_of(self, item: Delivery) -> str:
        return item.message.id

    def write_at_once(self, items: Sequence[Delivery]) -> list[WriteResult]:
        rows = sorted(items, key=_message_id)
        try:
            # On PostgreSQL the insert is a single statement, a transaction by itself.
            with self._database.statement() as connection:
                new = self._sql.insert(connection, rows, payload=self._payload)
        except ValueError as error:
            raise MessageRejected("an id in the batch is not a UUID") from error
        if new is None:
            return all_stored(items)
        known = sorted(d.message.id for d in items if d.message.id not in new)
        with self._database.read() as connection:
            digests = self._sql.stored_digests(connection, known)
        return _results(items, new, digests)

    def begin_carefully(self, connection: sa.Connection) -> None:
        pass

    def write_in(self, connection: sa.Connection, items: Sequence[Delivery]) -> list[WriteResult]:
        return self._write_in(connection, items, payload=self._payload)

    def _write_in(
        self, connection: sa.Connection, items: Sequence[Delivery], *, payload: bool
    ) -> list[WriteResult]:
        try:
            new = self._sql.insert(connection, items, payload=payload)
        except ValueError:
            raise MessageRejected("the id is not a UUID", error_class="InvalidId") from None
        old = [] if new is None else [d.message.id for d in items if d.message.id not in new]
        digests = self._sql.stored_digests(connection, old) if old else {}
        return _results(items, new, digests)

    def rescue(self, connection: sa.Connection, item: Delivery) -> WriteResult | None:
        # JSON that our check let pass and the database's own type refuses, such as 1e-20000.
        if not self._payload:
            return None
        savepoint = connection.begin_nested()
        try:
            refused = self._sql.refuses_payload(connection, item)
        finally:
            savepoint.rollback()
        return self._write_in(connection, [item], payload=False)[0] if refused else None


def _results(items: Sequence[Delivery], new: set[str] | None, digests: dict[str, bytes]) -> list[WriteResult]:
    return [
        WriteResult(message_id=d.message.id)
        if new is None or d.message.id in new
        else known_result(d, digests)
        for d in items
    ]


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
