"""The bare loop that draining is compared with: the same insert, without a queue, a process or a promise."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from uuid import UUID

import psycopg

from bench.load import body
from forebay.ids import new_id

_INSERT = """
INSERT INTO messages (id, queue, key, content_type, headers, payload, body, accepted_at, attempts, stored_at)
SELECT u.id, 'bench', NULL, 'application/json', u.headers::jsonb, u.payload::jsonb, u.body, u.accepted_at,
  1, now()
FROM unnest(%b::uuid[], %b::text[], %b::text[], %b::bytea[], %b::timestamptz[])
  AS u (id, headers, payload, body, accepted_at)
ON CONFLICT (id) DO NOTHING
RETURNING id
"""


def bare_loop(url: str, count: int, *, batch: int = 500) -> float:
    """Insert `count` new messages made beforehand, one transaction per batch; return messages per second."""
    batches = []
    for start in range(0, count, batch):
        bodies = [body(number) for number in range(start, min(start + batch, count))]
        batches.append(
            (
                [UUID(new_id()) for _ in bodies],
                ['{"source":"bench"}'] * len(bodies),
                [b.decode() for b in bodies],
                bodies,
                [datetime.now(UTC)] * len(bodies),
            )
        )
    with psycopg.connect(url) as connection:
        began = time.perf_counter()
        for columns in batches:
            connection.execute(_INSERT, columns, binary=True).fetchall()
            connection.commit()
        return count / (time.perf_counter() - began)
