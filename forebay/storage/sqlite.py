"""The batch insert for SQLite. The transaction is the only writer, so it may look before it writes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime

import sqlalchemy as sa

from forebay.brokers.api import Delivery
from forebay.storage.rows import clean, clean_name, headers_json, holds_json, says_json

_KNOWN = "SELECT id FROM messages WHERE id IN (SELECT value FROM json_each(?))"

_INSERT = """
INSERT INTO messages (id, queue, key, content_type, headers, payload, body, accepted_at, attempts, stored_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""

_RESOLVE = """
UPDATE dead_letters SET status = 'resolved', changed_at = ?
WHERE status IN ('dead', 'redriving') AND id = ? AND body = ?
"""

_ANY_OPEN = "SELECT EXISTS (SELECT 1 FROM dead_letters WHERE status IN ('dead', 'redriving'))"

_CLAIMED = """
SELECT id, digest FROM processed_messages
WHERE destination = ? AND id IN (SELECT value FROM json_each(?))
"""

_CLAIM = "INSERT INTO processed_messages (destination, id, digest, processed_at) VALUES (?, ?, ?, ?)"


def time_text(value: datetime) -> str:
    """As SQLAlchemy writes and reads a datetime here."""
    if value.tzinfo is not UTC:
        value = value.astimezone(UTC)
    return value.isoformat(" ", "microseconds")[:26]  # without the offset


def insert(connection: sa.Connection, batch: Sequence[Delivery], *, payload: bool) -> set[str] | None:
    """
    Insert `batch`, whose ids are distinct; mark open dead letters of these messages resolved.

    Returns the ids that were new; None means all of them.
    """
    ids = json.dumps([d.message.id for d in batch])
    known = {row[0] for row in connection.exec_driver_sql(_KNOWN, (ids,))}
    now = time_text(datetime.now(UTC))
    new = [d for d in batch if d.message.id not in known]
    if new:
        connection.exec_driver_sql(_INSERT, [row(d, payload, now) for d in new])
    _resolve(connection, batch, now)
    return {d.message.id for d in new} if known else None


def _resolve(connection: sa.Connection, batch: Sequence[Delivery], now: str) -> None:
    if connection.exec_driver_sql(_ANY_OPEN).scalar_one():
        arrived = [(now, d.message.id, d.message.body) for d in batch]
        connection.exec_driver_sql(_RESOLVE, arrived)


def row(delivery: Delivery, payload: bool, now: str) -> tuple[object, ...]:
    m = delivery.message
    is_json = payload and says_json(m.content_type) and holds_json(m.body)
    return (
        m.id,
        clean_name(delivery.queue),
        None if m.key is None else clean(m.key),
        clean_name(m.content_type),
        headers_json(m.headers).decode() if m.headers else "{}",
        m.body.decode() if is_json else None,
        m.body,
        time_text(m.accepted_at),
        delivery.attempt,
        now,
    )


def refuses_payload(connection: sa.Connection, delivery: Delivery) -> bool:
    """Never: the copy is text here."""
    return False


def stored_digests(connection: sa.Connection, ids: Sequence[str]) -> dict[str, bytes]:
    """SHA-256 of the stored bodies."""
    found = connection.exec_driver_sql(
        "SELECT id, body FROM messages WHERE id IN (SELECT value FROM json_each(?))", (json.dumps(ids),)
    )
    return {row[0]: hashlib.sha256(row[1]).digest() for row in found}


def claim(
    connection: sa.Connection, destination: str, ids: Sequence[str], digests: Sequence[bytes]
) -> set[str]:
    """Record distinct ids as processed; return those that were new."""
    known = claimed_digests(connection, destination, ids)
    now = time_text(datetime.now(UTC))
    rows = [(destination, i, d, now) for i, d in zip(ids, digests, strict=True) if i not in known]
    if rows:
        connection.exec_driver_sql(_CLAIM, rows)
    return {row[1] for row in rows}


def claimed_digests(connection: sa.Connection, destination: str, ids: Sequence[str]) -> dict[str, bytes]:
    rows = connection.exec_driver_sql(_CLAIMED, (destination, json.dumps(ids)))
    return {row[0]: row[1] for row in rows}
