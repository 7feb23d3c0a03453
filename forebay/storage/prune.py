"""Deleting what is old, in batches small enough that nobody waits for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from forebay.storage.database import Database
from forebay.storage.tables import audit_log, dead_letters, messages, processed_messages, redrive_jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneReport:
    """How many rows were deleted, or would be."""

    messages: int
    dead_letters: int
    processed_messages: int
    audit_log: int
    redrive_jobs: int

    @property
    def total(self) -> int:
        rows = (self.messages, self.dead_letters, self.processed_messages, self.audit_log, self.redrive_jobs)
        return sum(rows)


def prune(
    database: Database,
    *,
    older_than: float | None,
    resolved_older_than: float,
    audit_older_than: float | None = None,
    dry_run: bool,
    batch: int = 1000,
    progress: Callable[[int], None] = lambda _: None,
) -> PruneReport:
    """
    Delete messages and once-only records of more than `older_than` seconds ago, and dead
    letters resolved or discarded more than `resolved_older_than` seconds ago; what operators did, and
    redrives that ended, more than `audit_older_than` seconds ago.

    None leaves those alone. Open dead letters are
    never deleted. Each batch is a transaction; `progress` gets its number of rows. An id
    that was deleted is new again when it comes once more.
    """
    now = datetime.now(UTC)
    counts = {t.name: 0 for t in (messages, dead_letters, processed_messages, audit_log, redrive_jobs)}
    resolved = [
        dead_letters.c.status.in_(("resolved", "discarded")),
        dead_letters.c.changed_at < now - timedelta(seconds=resolved_older_than),
    ]
    work: list[tuple[sa.Table, list[sa.ColumnElement[bool]]]] = [(dead_letters, resolved)]
    if older_than is not None:
        before = now - timedelta(seconds=older_than)
        # Queue by queue: that is what the index on age begins with.
        work += [
            (messages, [messages.c.queue == queue, messages.c.stored_at < before])
            for queue in _queues(database)
        ]
        work.append((processed_messages, [processed_messages.c.processed_at < before]))
    if audit_older_than is not None:
        before = now - timedelta(seconds=audit_older_than)
        work += [(audit_log, [audit_log.c.at < before]), (redrive_jobs, [redrive_jobs.c.ended_at < before])]
    for table, old in work:
        for deleted in (
            _count(database, table, old) if dry_run else delete_in_batches(database, table, old, batch)
        ):
            counts[table.name] += deleted
            progress(deleted)
    return PruneReport(**counts)


def _count(database: Database, table: sa.Table, old: list[sa.ColumnElement[bool]]) -> Iterator[int]:
    with database.read() as connection:
        yield connection.execute(sa.select(sa.func.count()).select_from(table).where(*old)).scalar_one()


def delete_in_batches(
    database: Database, table: sa.Table, old: list[sa.ColumnElement[bool]], batch: int
) -> Iterator[int]:
    """Delete what is `old`, at most `batch` rows in a transaction; give the number of each."""
    key = list(table.primary_key.columns)
    delete: sa.Executable
    if database.dialect == "mysql":
        # Which takes no LIMIT in a subquery, but on DELETE itself.
        delete = sa.delete(table).where(*old).ext(mysql.limit(batch))
    else:
        delete = sa.delete(table).where(sa.tuple_(*key).in_(sa.select(*key).where(*old).limit(batch)))
    while True:
        with database.begin() as connection:
            deleted = connection.execute(delete).rowcount
        if deleted == 0:
            return
        yield deleted
        if deleted < batch:
            return


def _queues(database: Database) -> Iterator[str]:
    """The queues that have messages: one look into the index per queue, not one per message."""
    last = ""
    while True:
        with database.read() as connection:
            query = sa.select(sa.func.min(messages.c.queue)).where(messages.c.queue > last)
            found = connection.execute(query).scalar_one()
        if found is None:
            return
        yield found
        last = found
