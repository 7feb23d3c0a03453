"""The dead-letter store: given-up messages with their reason, to be read, sent back or discarded."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from forebay import ids
from forebay.brokers.api import Attempt, Death, Delivery, Failure
from forebay.storage.database import Database
from forebay.storage.dead_letter_types import (
    OPEN,
    STATUSES,
    DeadLetterFilter,
    DeadLetterGroup,
    DeadLetterRecord,
    DeadLetterStatus,
    Position,
    conditions,
    fingerprint_of,
)
from forebay.storage.rows import clean, clean_headers
from forebay.storage.tables import dead_letters as table
from forebay.storage.tables import messages, processed_messages

__all__ = [
    "OPEN",
    "STATUSES",
    "DeadLetterFilter",
    "DeadLetterGroup",
    "DeadLetterRecord",
    "DeadLetterStatus",
    "DeadLetterStore",
    "Position",
    "fingerprint_of",
    "resolve",
]

_CHUNK = 500
"""Rows per statement, far below every database's limit of parameters."""


# Inside the class below `list` is a method.
Records = list[DeadLetterRecord]
Groups = list[DeadLetterGroup]
Conditions = list[sa.ColumnElement[bool]]

_REDIED = (
    "attempts", "reason", "error_class", "fingerprint", "detail", "died_at", "status", "changed_at",
    "history",
)  # fmt: skip
"""What a later death of the same message changes in its record."""


class DeadLetterStore:
    """The `dead_letters` table of one database. Raises SinkUnavailable and its like for all trouble."""

    def __init__(self, database: Database) -> None:
        self._database = database
        # These two have the same ON CONFLICT; SQLAlchemy has no common word for it.
        self._insert = postgresql.insert if database.dialect == "postgresql" else sqlite.insert
        # MySQL tells neither which row an upsert nor which rows an UPDATE has changed: there we look first.
        self._looks_first = database.dialect == "mysql"

    def archive(self, deliveries: Sequence[Delivery]) -> None:
        """
        Store deliveries from a dead-letter queue.

        The same death archived twice is one record, whatever an operator did to it
        meanwhile; a later death of the same message opens its record again. Another
        body under an id that is here already gets an id of its own, so that neither is
        lost. A dead letter that has been stored or handled after all is
        `resolved` at once.
        """
        records = [_record(d) for d in deliveries]
        with self._database.begin() as connection:
            # One after the other: of the same id twice, the second must see the first.
            # Dead letters are few; where they are many, the budget stops the queue.
            for record in records:
                self._archive(connection, record)
        with self._database.begin() as connection:
            # Stored by another process meanwhile: neither of the two saw what the other had not committed.
            for record in records:
                if _arrived(connection, record) == "same bytes":
                    resolve(connection, record.destination, {record.id: record.body})

    def _archive(self, connection: sa.Connection, record: DeadLetterRecord) -> None:
        if not self._put(connection, record):
            new_id = ids.conflict_id(record.id, record.body)
            self._put(connection, replace(record, id=new_id, original_id=record.original_id or record.id))

    def _put(self, connection: sa.Connection, record: DeadLetterRecord) -> bool:
        """Insert or renew the record; False if its id belongs to another body, there or here."""
        arrived = _arrived(connection, record)
        if arrived == "other bytes":
            return False
        if arrived == "same bytes":
            record = replace(record, status="resolved")
        edited = sa.select(table.c.id).where(table.c.edited_to == record.id).limit(1)
        record = replace(record, edited_from=connection.execute(edited).scalar_one_or_none())
        row = {c: getattr(record, c) for c in _COLUMNS} | {"changed_at": datetime.now(UTC)}
        if self._looks_first:
            return _put_looking(connection, row)
        insert = self._insert(table).values(row)
        # What was sent back has died again whatever the clock of that consumer says.
        died_again = sa.or_(
            table.c.died_at < insert.excluded.died_at,
            sa.and_(table.c.status == "redriving", table.c.died_at != insert.excluded.died_at),
        )
        put = insert.on_conflict_do_update(
            index_elements=["id", "destination"],
            set_={c: insert.excluded[c] for c in _REDIED} | {"discard_reason": None},
            where=sa.and_(table.c.body == insert.excluded.body, died_again),
        ).returning(table.c.id)
        if connection.execute(put).one_or_none() is not None:
            return True
        # Asked only now: another archiver may have been first, and the insert has waited for it.
        same = sa.select(table.c.body == record.body).where(
            table.c.id == record.id, table.c.destination == record.destination
        )
        return bool(connection.execute(same).scalar_one())

    def count(self, which: DeadLetterFilter) -> int:
        with self._database.read() as connection:
            query = sa.select(sa.func.count()).select_from(table).where(*self._where(which))
            return int(connection.execute(query).scalar_one())

    def list(
        self,
        which: DeadLetterFilter,
        *,
        limit: int,
        after: DeadLetterRecord | Position | None = None,
        bodies: bool = False,
        newest_first: bool = False,
        where: sa.ColumnElement[bool] | None = None,
    ) -> Records:
        """
        A page of at most `limit`, ordered by the time of death.

        `after` is the last record of the page before. Records that change between two
        pages do not move: nothing is skipped or seen twice.
        """
        order = (table.c.died_at, table.c.id, table.c.destination)
        query = sa.select(*_selected(bodies)).where(*self._where(which)).limit(limit)
        if where is not None:
            query = query.where(where)
        if after is not None:
            seen = sa.tuple_(
                sa.literal(after.died_at, table.c.died_at.type),
                sa.literal(after.id, table.c.id.type),
                sa.literal(after.destination, table.c.destination.type),
            )
            query = query.where(sa.tuple_(*order) < seen if newest_first else sa.tuple_(*order) > seen)
        query = query.order_by(*(c.desc() if newest_first else c.asc() for c in order))
        with self._database.read() as connection:
            return [_from_row(row) for row in connection.execute(query).mappings()]

    def get(self, id: str) -> Records:
        """All records of a message, one per destination, with bodies; also those it has under other ids."""
        return self.list(DeadLetterFilter(ids=[id]), limit=1000, bodies=True)

    def mark(
        self,
        records: Sequence[DeadLetterRecord],
        *,
        status: DeadLetterStatus,
        expected: DeadLetterStatus | Collection[DeadLetterStatus],
        **changes: Any,
    ) -> int:
        """Give `records` a new status where they still have an `expected` one; return how many that were."""
        return len(self.take(records, status=status, expected=expected, **changes))

    def take(
        self,
        records: Sequence[DeadLetterRecord],
        *,
        status: DeadLetterStatus,
        expected: DeadLetterStatus | Collection[DeadLetterStatus],
        where: sa.ColumnElement[bool] | None = None,
        connection: sa.Connection | None = None,
        **changes: Any,
    ) -> Records:
        """
        As `mark`; return the records that were changed. Two that take the same records share them out.

        `changes` are further columns to set. With `connection` it is part of that transaction.
        """
        if connection is None:
            with self._database.begin() as connection:
                return self.take(
                    records, status=status, expected=expected, where=where, connection=connection, **changes
                )
        before = [expected] if isinstance(expected, str) else list(expected)
        taken: set[tuple[str, str]] = set()
        ordered = sorted(records, key=lambda r: (r.id, r.destination))
        key = (table.c.id, table.c.destination)
        change = sa.update(table).values(status=status, changed_at=datetime.now(UTC), **changes)
        for start in range(0, len(ordered), _CHUNK):
            mine = _one_of([(r.id, r.destination) for r in ordered[start : start + _CHUNK]])
            open_ = [mine, table.c.status.in_(before), *(() if where is None else (where,))]
            if self._looks_first:
                locked = sa.select(*key).where(*open_).with_for_update()
                found = [(row.id, row.destination) for row in connection.execute(locked)]
                if found:
                    connection.execute(change.where(_one_of(found)))
            else:
                update = change.where(*open_).returning(*key)
                found = [(row.id, row.destination) for row in connection.execute(update)]
            taken |= set(found)
        return [replace(r, status=status) for r in records if (r.id, r.destination) in taken]

    def by_status(self) -> dict[DeadLetterStatus, int]:
        """How many there are of each."""
        query = sa.select(table.c.status, sa.func.count().label("number")).group_by(table.c.status)
        with self._database.read() as connection:
            found = {row.status: int(row.number) for row in connection.execute(query)}
        return {status: found.get(status, 0) for status in STATUSES}

    def confirm_sent(self, records: Sequence[DeadLetterRecord], job: str) -> None:
        """Write down that the broker has them. What became of them meanwhile is left as it is."""
        mine = sorted({r.id for r in records})
        with self._database.begin() as connection:
            for start in range(0, len(mine), _CHUNK):
                connection.execute(
                    sa.update(table)
                    .where(table.c.id.in_(mine[start : start + _CHUNK]), table.c.redrive_job == job)
                    .values(redriven_at=datetime.now(UTC))
                )

    def _where(self, which: DeadLetterFilter) -> Conditions:
        return conditions(which, self._database.dialect)

    def groups(self, which: DeadLetterFilter) -> Groups:
        """One line per cause, the most frequent first."""
        query = (
            sa.select(
                table.c.fingerprint,
                table.c.error_class,
                table.c.destination,
                sa.func.min(table.c.reason).label("reason"),
                sa.func.count().label("count"),
                sa.func.min(table.c.died_at).label("first_died_at"),
                sa.func.max(table.c.died_at).label("last_died_at"),
                # As text: not every server can tell the least of two uuids.
                sa.func.min(sa.cast(table.c.id, sa.String(36))).label("sample_id"),
            )
            .where(*self._where(which))
            .group_by(table.c.fingerprint, table.c.error_class, table.c.destination)
            .order_by(sa.desc("count"), table.c.fingerprint)
        )
        with self._database.read() as connection:
            return [DeadLetterGroup(**row) for row in connection.execute(query).mappings()]


def _put_looking(connection: sa.Connection, row: Mapping[str, Any]) -> bool:
    """`DeadLetterStore._put` where an upsert does not tell what it did."""
    mine = sa.and_(table.c.id == row["id"], table.c.destination == row["destination"])
    look = sa.select(table.c.body, table.c.died_at, table.c.status).where(mine).with_for_update()
    found = connection.execute(look).one_or_none()
    if found is None:
        try:
            # Waits for another archiver that has inserted it and not committed yet.
            connection.execute(sa.insert(table).values(row))
            return True
        except sa.exc.IntegrityError:
            found = connection.execute(look).one_or_none()
            if found is None:
                raise
    if bytes(found.body) != row["body"]:
        return False
    if found.died_at < row["died_at"] or (found.status == "redriving" and found.died_at != row["died_at"]):
        connection.execute(sa.update(table).where(mine).values({c: row[c] for c in _REDIED}))
    return True


def _one_of(keys: Sequence[tuple[str, str]]) -> sa.ColumnElement[bool]:
    return sa.or_(*(sa.and_(table.c.id == id, table.c.destination == where) for id, where in keys))


def resolve(connection: sa.Connection, destination: str, bodies: Mapping[str, bytes]) -> None:
    """
    Mark open dead letters for `destination` resolved: they have arrived after all.

    `bodies` are by id. A dead letter with one of these ids and other bytes stays open.
    """
    if not bodies or not connection.execute(_ANY_OPEN).scalar_one():
        return
    ids = sorted(bodies)
    for start in range(0, len(ids), _CHUNK):
        mine = sa.and_(
            table.c.id.in_(ids[start : start + _CHUNK]),
            table.c.destination == destination,
            table.c.status.in_(OPEN),
        )
        opened = connection.execute(sa.select(table.c.id, table.c.body).where(mine))
        arrived = [row.id for row in opened if bytes(row.body) == bodies[row.id]]
        connection.execute(
            sa.update(table)
            .where(mine, table.c.id.in_(arrived))
            .values(status="resolved", changed_at=datetime.now(UTC))
        )


_ANY_OPEN = sa.select(sa.exists(sa.select(sa.literal(1)).where(table.c.status.in_(OPEN))))

_COLUMNS = tuple(c.name for c in table.columns if c.name != "changed_at")


def _record(delivery: Delivery) -> DeadLetterRecord:
    message = delivery.message
    death = delivery.death or Death(
        # Another program put it there, by hand perhaps.
        failure=Failure(reason="no reason was recorded", error_class="unknown"),
        queue=delivery.queue.removesuffix(".dead"),
        attempts=delivery.attempt,
        died_at=message.accepted_at,
    )
    failure = death.failure
    return DeadLetterRecord(
        id=message.id,
        destination=clean(failure.destination)[:200],
        queue=clean(death.queue)[:80],
        key=None if message.key is None else clean(message.key),
        content_type=clean(message.content_type),
        headers=clean_headers(message.headers),
        body=message.body,
        accepted_at=message.accepted_at,
        attempts=death.attempts,
        reason=clean(failure.reason),
        error_class=clean(failure.error_class)[:200],
        fingerprint=fingerprint_of(failure.error_class, failure.destination, failure.reason),
        detail=clean(failure.detail),
        died_at=death.died_at,
        status="dead",
        original_id=death.original_id,
        history=[_attempt(a) for a in death.history] or None,
    )


def _attempt(of: Attempt) -> dict[str, Any]:
    return {
        "number": of.number,
        "failed_at": of.failed_at.isoformat(),
        "worker": clean(of.worker),
        "seconds": of.seconds,
        "error_class": clean(of.error_class),
        "reason": clean(of.reason),
    }


def _arrived(
    connection: sa.Connection, record: DeadLetterRecord
) -> Literal["same bytes", "other bytes", None]:
    """Has the message been stored or handled after all, or another one under its id."""
    m, p = messages.c, processed_messages.c
    same = connection.execute(sa.select(m.body == record.body).where(m.id == record.id)).scalar_one_or_none()
    if same is None:
        digest = connection.execute(
            sa.select(p.digest).where(p.id == record.id, p.destination == record.destination)
        ).scalar_one_or_none()
        if digest is None:
            return None
        same = bytes(digest) == hashlib.sha256(record.body).digest()
    return "same bytes" if same else "other bytes"


def _selected(bodies: bool) -> list[sa.ColumnElement[Any]]:
    return [table.c[c] for c in _COLUMNS if bodies or c != "body"]


def _from_row(row: sa.RowMapping) -> DeadLetterRecord:
    return DeadLetterRecord(**({"body": b""} | dict(row)))
