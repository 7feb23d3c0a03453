"""The batch insert for PostgreSQL: one statement, one array parameter per column, one round trip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from psycopg import Connection, Cursor, Error

from forebay.brokers.api import Delivery
from forebay.errors import MessageRejected
from forebay.storage import pgarrays
from forebay.storage.classify import classify
from forebay.storage.rows import headers_jsons, holds_json, name_bytes, says_json, text_bytes

# One row comes back, and the ids of what was new only if something was not. The copy of a body need
# not travel: the server makes it.
_INSERT = """
WITH new AS (
  INSERT INTO messages
    (id, body, queue, key, content_type, headers, payload, accepted_at, attempts, stored_at)
  SELECT u.id, u.body, u.queue, u.key, u.content_type, u.headers,
    CASE WHEN u.copied THEN convert_from(u.body, 'UTF8')::jsonb END, u.accepted_at, u.attempts, now()
  FROM unnest(
    %b::uuid[], %b::bytea[], %b::text[], %b::text[], %b::text[], %b::jsonb[], %b::bool[], %b::timestamptz[],
    %b::int4[]
  ) AS u (id, body, queue, key, content_type, headers, copied, accepted_at, attempts)
  ON CONFLICT (id) DO NOTHING
  RETURNING id
)
SELECT
  CASE WHEN count(*) < %s THEN coalesce(array_agg(id::text), '{}') END,
  EXISTS (SELECT FROM dead_letters WHERE status IN ('dead', 'redriving'))
FROM new
"""

_RESOLVE = """
UPDATE dead_letters AS d SET status = 'resolved', changed_at = now()
FROM unnest(%b::uuid[], %b::bytea[]) AS g (id, body)
WHERE d.id = g.id AND d.body = g.body AND d.status IN ('dead', 'redriving')
"""

_DIGESTS = "SELECT id::text, sha256(body) FROM messages WHERE id = ANY (%b::uuid[])"

_CLAIM = """
INSERT INTO processed_messages (destination, id, digest, processed_at)
SELECT %s, u.id, u.digest, now() FROM unnest(%b::uuid[], %b::bytea[]) AS u (id, digest)
ON CONFLICT (destination, id) DO NOTHING
RETURNING id::text
"""

_CLAIMED_DIGESTS = """
SELECT id::text, digest FROM processed_messages WHERE destination = %s AND id = ANY (%b::uuid[])
"""


def cursor(connection: sa.Connection) -> Cursor[Any]:
    """A cursor of the driver below `connection`, in its transaction, that takes our arrays."""
    driver = connection.connection.driver_connection
    assert isinstance(driver, Connection)
    made = driver.cursor(binary=True)
    made.adapters.register_dumper(pgarrays.BinaryArray, pgarrays.BinaryArrayDumper)
    return made


def columns(batch: Sequence[Delivery], *, payload: bool) -> list[pgarrays.BinaryArray]:
    """The parameters of the insert for `batch`, which is not empty."""
    messages = [d.message for d in batch]
    return [
        pgarrays.uuids([m.id for m in messages]),
        pgarrays.byteas([m.body for m in messages]),
        pgarrays.texts([name_bytes(d.queue) for d in batch]),
        pgarrays.texts([None if m.key is None else text_bytes(m.key) for m in messages]),
        pgarrays.texts([name_bytes(m.content_type) for m in messages]),
        pgarrays.jsonbs(headers_jsons([m.headers for m in messages])),
        pgarrays.numbers(
            "bool", [payload and says_json(m.content_type) and holds_json(m.body) for m in messages]
        ),
        pgarrays.timestamps([m.accepted_at for m in messages]),
        pgarrays.numbers("int4", [d.attempt for d in batch]),
    ]


def insert(connection: sa.Connection, batch: Sequence[Delivery], *, payload: bool) -> set[str] | None:
    """
    Insert `batch`, whose ids are distinct and sorted; mark open dead letters of these messages resolved.

    Returns the ids that were new; None means all of them.
    """
    arrays = columns(batch, payload=payload)
    with cursor(connection) as cur:
        cur.execute(_INSERT, [*arrays, len(batch)])
        ((new, any_open),) = cur.fetchall()
        if any_open:
            # Where the insert is committed already and this is not reached, the batch is not acknowledged
            # either: it comes again, as duplicates, and they are resolved then.
            cur.execute(_RESOLVE, arrays[:2])
    return None if new is None else set(new)


def refuses_payload(connection: sa.Connection, delivery: Delivery) -> bool:
    """Is it the JSON copy that the server cannot hold. Call it under a savepoint."""
    message = delivery.message
    if not (says_json(message.content_type) and holds_json(message.body)):
        return False
    try:
        with cursor(connection) as cur:
            cur.execute("SELECT convert_from(%b, 'UTF8')::jsonb", [message.body])
    except Error as error:
        if isinstance(classify(error, "postgresql"), MessageRejected):
            return True
        raise
    return False


def stored_digests(connection: sa.Connection, ids: Sequence[str]) -> dict[str, bytes]:
    """SHA-256 of the stored bodies, computed by the server: what is compared need not travel."""
    with cursor(connection) as cur:
        cur.execute(_DIGESTS, [pgarrays.uuids(ids)])
        return dict(cur.fetchall())


def claim(
    connection: sa.Connection, destination: str, ids: Sequence[str], digests: Sequence[bytes]
) -> set[str]:
    """Record distinct, sorted ids as processed; return those that were new."""
    with cursor(connection) as cur:
        cur.execute(_CLAIM, [destination, pgarrays.uuids(ids), pgarrays.byteas(digests)])
        return {row[0] for row in cur.fetchall()}


def claimed_digests(connection: sa.Connection, destination: str, ids: Sequence[str]) -> dict[str, bytes]:
    with cursor(connection) as cur:
        cur.execute(_CLAIMED_DIGESTS, [destination, pgarrays.uuids(ids)])
        return dict(cur.fetchall())
