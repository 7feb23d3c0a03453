"""What rests where, by its digest; and how large the tables are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import sqlalchemy as sa

from forebay.ids import canonical
from forebay.storage.database import Database
from forebay.storage.states import any_of
from forebay.storage.tables import answers, dead_letters, messages, processed_messages

_BATCH = 5_000
"""Ids per query of `digests`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDigest:
    """One place where a message, or what was sent with its id, rests."""

    id: str
    where: Literal["stored", "done", "dead", "discarded"]
    """`dead` also while it is being sent back to its queue."""
    digest: str
    """SHA-256 of the body, in hexadecimal."""
    original_id: str | None = None
    """The id it was sent with, when it rests under another."""
    destination: str | None = None
    attempts: int | None = None
    """Counted tries; only of what is stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSize:
    name: str
    rows: int
    exact: bool
    """False: the server's estimate."""
    bytes: int | None
    """With indexes; None where the database cannot tell."""
    rows_last_day: int
    """Those that came within the last 24 hours: the growth."""


def digests(database: Database, ids: Sequence[str]) -> dict[str, list[StoredDigest]]:
    """
    Where each of `ids` rests, with the digest of what rests there; ids not found are absent.

    A dead letter under another id is found by the id it was sent with. Resolved dead
    letters are left out: what they tell is where the message is stored. In batches,
    with bodies hashed where they are; 300,000 ids take less than half a minute.
    """
    found: dict[str, list[StoredDigest]] = {}
    wanted = [i for i in (canonical(x) for x in ids) if i is not None]
    for start in range(0, len(wanted), _BATCH):
        batch = dict.fromkeys(wanted[start : start + _BATCH])
        with database.read() as connection:
            for digest in _digests(database, connection, list(batch)):
                for id in {digest.id, digest.original_id or digest.id} & batch.keys():
                    found.setdefault(id, []).append(digest)
    return found


def _digests(database: Database, connection: sa.Connection, ids: list[str]) -> Iterator[StoredDigest]:
    d, p = dead_letters.c, processed_messages.c
    stored = [messages.c.id, messages.c.attempts]
    for id, attempts, digest in _body_digests(database, connection, messages, stored, messages.c.id, ids):
        yield StoredDigest(id=id, where="stored", digest=digest, attempts=attempts)
    for row in connection.execute(
        sa.select(p.id, p.destination, p.digest).where(any_of(database, p.id, ids))
    ):
        yield StoredDigest(
            id=row.id, where="done", digest=bytes(row.digest).hex(), destination=row.destination
        )
    seen: set[tuple[str, str]] = set()
    columns = [d.id, d.destination, d.original_id, d.status]
    for by in (d.id, d.original_id):
        for *row_, digest in _body_digests(database, connection, dead_letters, columns, by, ids):
            id, destination, original_id, status = row_
            if status != "resolved" and (id, destination) not in seen:
                seen.add((id, destination))
                yield StoredDigest(
                    id=id, where="discarded" if status == "discarded" else "dead", digest=digest,
                    original_id=original_id, destination=destination,
                )  # fmt: skip


def _body_digests(
    database: Database,
    connection: sa.Connection,
    table: sa.Table,
    columns: list[sa.Column[Any]],
    by: sa.Column[Any],
    ids: list[str],
) -> Iterator[tuple[Any, ...]]:
    """`columns` of the rows that `by` finds, and the digest of their bodies as the last value."""
    if database.dialect != "sqlite":
        hashed = (
            sa.func.sha2(table.c.body, 256)
            if database.dialect == "mysql"
            else sa.func.encode(sa.func.sha256(table.c.body), sa.literal_column("'hex'"))
        )
        for row in connection.execute(sa.select(*columns, hashed).where(any_of(database, by, ids))):
            yield tuple(row)
    else:
        for row in connection.execute(sa.select(*columns, table.c.body).where(any_of(database, by, ids))):
            yield (*row[:-1], hashlib.sha256(row[-1]).hexdigest())


def table_sizes(database: Database) -> list[TableSize]:
    """
    Rows and bytes of each table that grows with the messages.

    Counts exactly where that is cheap, and says where it did not.
    """
    arrival = {
        messages: messages.c.stored_at,
        dead_letters: dead_letters.c.died_at,
        processed_messages: processed_messages.c.processed_at,
        answers: answers.c.answered_at,
    }
    yesterday = datetime.now(UTC) - timedelta(days=1)
    sizes = []
    with database.read() as connection:
        for table, arrived in arrival.items():
            recent = sa.select(sa.func.count()).where(arrived > yesterday)
            rows, exact, size = _size(database, connection, table)
            sizes.append(
                TableSize(
                    name=table.name, rows=rows, exact=exact, bytes=size,
                    rows_last_day=connection.execute(recent).scalar_one(),
                )
            )  # fmt: skip
    return sizes


def _size(database: Database, connection: sa.Connection, table: sa.Table) -> tuple[int, bool, int | None]:
    if database.dialect == "postgresql":
        estimate, size = connection.execute(
            sa.text(
                "SELECT reltuples::bigint, pg_total_relation_size(oid) FROM pg_class"
                " WHERE oid = CAST(:name AS regclass)"
            ),
            {"name": table.name},
        ).one()
        if estimate > 100_000:
            return estimate, False, size
    elif database.dialect == "mysql":
        estimate, size = connection.execute(
            sa.text(
                "SELECT table_rows, data_length + index_length FROM information_schema.tables"
                " WHERE table_schema = database() AND table_name = :name"
            ),
            {"name": table.name},
        ).one()
        if estimate > 100_000:
            return int(estimate), False, int(size)
        size = int(size)
    else:
        size = None
    return connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one(), True, size
