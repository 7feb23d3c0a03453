"""Where a message is now, as far as the database knows; and how large the tables are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import sqlalchemy as sa

from forebay.ids import canonical
from forebay.storage.database import Database
from forebay.storage.tables import dead_letters, messages, processed_messages

State = Literal["stored", "done", "dead", "discarded", "waiting"]

_BATCH = 5_000
"""Ids per query of `digests`."""

# `resolved` without a row: it arrived, and was pruned since. Open ones first: with one destination dead
# and another one discarded a message is dead.
_OF_STATUS: dict[str, State] = {
    "dead": "dead", "redriving": "waiting", "discarded": "discarded", "resolved": "done",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageStatus:
    """What the database knows about one message."""

    id: str
    state: State
    """`waiting`: was dead, and is on its way back to its queue."""
    queue: str | None = None
    """None for `done`: the once-only record does not keep it."""
    destination: str | None = None
    """Who handled it, or did not take it."""
    accepted_at: datetime | None = None
    stored_at: datetime | None = None
    """When it was stored, or handled."""
    attempts: int | None = None
    reason: str | None = None
    """Why it is dead."""
    died_at: datetime | None = None
    original_id: str | None = None
    conflicts: tuple[str, ...] | None = None
    """Ids of dead letters that came with this id and other bytes."""


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


def message_status(database: Database, message_id: str) -> MessageStatus | None:
    """
    The state of a message; None when the database has not seen it.

    Stored comes before done, done before dead: a dead letter that arrived after all
    is not dead, even if nobody has marked it so yet.
    """
    id = canonical(message_id)
    if id is None:
        return None
    m, p, d = messages.c, processed_messages.c, dead_letters.c
    with database.read() as connection:
        letters = connection.execute(
            sa.select(
                d.id, d.destination, d.queue, d.accepted_at, d.attempts, d.reason, d.died_at, d.status,
                d.original_id,
            )
            .where(sa.or_(d.id == id, d.original_id == id))
            .order_by(d.died_at.desc())
        ).all()  # fmt: skip
        conflicts = tuple(sorted({x.id for x in letters if x.id != id})) or None
        stored = connection.execute(
            sa.select(m.queue, m.accepted_at, m.stored_at, m.attempts).where(m.id == id)
        ).one_or_none()
        if stored is not None:
            return MessageStatus(id=id, state="stored", **stored._mapping, conflicts=conflicts)
        done = connection.execute(
            sa.select(p.destination, p.processed_at).where(p.id == id).order_by(p.processed_at).limit(1)
        ).one_or_none()
        if done is not None:
            return MessageStatus(
                id=id, state="done", destination=done.destination, stored_at=done.processed_at,
                conflicts=conflicts,
            )  # fmt: skip
    own = sorted((x for x in letters if x.id == id), key=lambda x: list(_OF_STATUS).index(x.status))
    if not own and conflicts is None:
        return None
    letter = own[0] if own else letters[0]
    return MessageStatus(
        id=id,
        state=_OF_STATUS[letter.status],
        queue=letter.queue,
        destination=letter.destination,
        accepted_at=letter.accepted_at,
        attempts=letter.attempts,
        reason=letter.reason,
        died_at=letter.died_at,
        original_id=letter.original_id,
        conflicts=conflicts,
    )


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
    for row in connection.execute(sa.select(p.id, p.destination, p.digest).where(_any(database, p.id, ids))):
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
        for row in connection.execute(sa.select(*columns, hashed).where(_any(database, by, ids))):
            yield tuple(row)
    else:
        for row in connection.execute(sa.select(*columns, table.c.body).where(_any(database, by, ids))):
            yield (*row[:-1], hashlib.sha256(row[-1]).hexdigest())


def _any(database: Database, column: sa.Column[Any], ids: list[str]) -> sa.ColumnElement[bool]:
    """`column` is one of `ids`, with one parameter however many they are."""
    if database.dialect == "postgresql":
        # As rows, not `= ANY (array)`: the array would be read from its text again for every row.
        array = sa.cast(sa.literal("{" + ",".join(ids) + "}", sa.Text), sa.ARRAY(sa.Uuid(as_uuid=False)))
        return column.in_(sa.select(sa.func.unnest(array)))
    if database.dialect == "mysql":
        return column.in_(ids)  # the driver writes them into the statement
    values = sa.func.json_each(sa.literal("[" + ",".join(f'"{i}"' for i in ids) + "]", sa.Text))
    return column.in_(sa.select(values.table_valued("value").c.value))


def table_sizes(database: Database) -> list[TableSize]:
    """
    Rows and bytes of each table that grows with the messages.

    Counts exactly where that is cheap, and says where it did not.
    """
    arrival = {
        messages: messages.c.stored_at,
        dead_letters: dead_letters.c.died_at,
        processed_messages: processed_messages.c.processed_at,
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
