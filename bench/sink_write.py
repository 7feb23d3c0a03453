"""
What `MessageStore.write` adds to the insert itself: batches of 500 messages from memory into PostgreSQL.

The bare loop runs the same idempotent array insert into the same table, from arrays
that were made beforehand in the server's own binary format, one transaction per
batch. Both are measured in turns on a server of our own, with fsync.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime

import orjson
import psycopg

from bench.report import Series, Target, ratio, record, versions
from forebay.brokers.api import Delivery
from forebay.ids import id_from_key, new_id
from forebay.message import Message
from forebay.storage import pgarrays
from forebay.storage.database import Database
from forebay.storage.messages import MessageStore
from forebay.storage.postgresql import columns
from forebay.storage.schema import migrate
from tests.servers.postgres import Postgres

ROUNDS = int(os.environ.get("ROUNDS", "7"))
BATCHES = int(os.environ.get("BATCHES", "40"))
BATCH = 500

_INSERT = """
INSERT INTO messages (id, body, queue, key, content_type, headers, payload, accepted_at, attempts, stored_at)
SELECT u.*, now() FROM unnest(
  %b::uuid[], %b::bytea[], %b::text[], %b::text[], %b::text[], %b::jsonb[], %b::jsonb[], %b::timestamptz[],
  %b::int4[]
) AS u
ON CONFLICT (id) DO NOTHING
RETURNING id
"""


def body(number: int) -> bytes:
    """A record of 20 fields, as a business has them: costlier to check than one long text."""
    fields: dict[str, object] = {f"field_{n:02}": n * number for n in range(10)}
    fields |= {f"text_{n:02}": f"some words {number % 97}" for n in range(10)}
    return orjson.dumps(fields)


def batches(*, keyed: bool) -> list[list[Delivery]]:
    """New messages; with ids from idempotency keys, which arrive in no order, or without."""
    made = []
    now = datetime.now(UTC)
    for _ in range(BATCHES):
        batch = []
        for number in range(BATCH):
            id = id_from_key("bench", "bench", new_id()) if keyed else new_id()
            message = Message(
                id=id, body=body(number), accepted_at=now, content_type="application/json",
                headers={"source": "bench"},
            )  # fmt: skip
            batch.append(Delivery(message=message, queue="bench", attempt=1, receipt=None))
        made.append(batch)
    return made


def timed(run: Callable[[], None]) -> tuple[float, float]:
    """Messages per second, and µs of our own CPU time per message."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    count = BATCHES * BATCH
    return count / (time.perf_counter() - wall), (time.process_time() - cpu) / count * 1e6


def store_loop(_: psycopg.Connection, store: MessageStore, work: list[list[Delivery]]) -> Callable[[], None]:
    def run() -> None:
        for batch in work:
            results = store.write(batch)
            assert not any(r.error or r.duplicate for r in results)

    return run


def bare_loop(
    connection: psycopg.Connection, _: MessageStore, work: list[list[Delivery]]
) -> Callable[[], None]:
    arrays = [columns(sorted(batch, key=lambda d: d.message.id), payload=True) for batch in work]
    cursor = connection.cursor(binary=True)
    cursor.adapters.register_dumper(pgarrays.BinaryArray, pgarrays.BinaryArrayDumper)

    def run() -> None:
        for parameters in arrays:
            cursor.execute(_INSERT, parameters)
            assert cursor.rowcount == BATCH

    return run


def main() -> int:
    figures: dict[str, object] = {
        "method": f"{BATCHES} batches of {BATCH}, {ROUNDS} interleaved rounds; 450-byte bodies of 20 fields"
    }
    targets = []
    with Postgres() as server:
        url = server.create_database()
        database = Database(url)
        migrate(database)
        store = MessageStore(database)
        with psycopg.connect(url, autocommit=True, prepare_threshold=None) as connection:
            figures["server"] = server.version
            for keyed in (False, True):
                ids = "ids from idempotency keys" if keyed else "ids made by the gateway"
                ours, bare, our_cpu, bare_cpu = Series(), Series(), Series(), Series()
                for number in range(ROUNDS + 1):
                    print(f"{ids}: round {number} of {ROUNDS}", file=sys.stderr)
                    for loop, rates, cpus in ((bare_loop, bare, bare_cpu), (store_loop, ours, our_cpu)):
                        rate, cpu = timed(loop(connection, store, batches(keyed=keyed)))
                        if number:  # the first round warms up
                            rates.add(rate)
                            cpus.add(cpu)
                        connection.execute("TRUNCATE messages")
                        connection.execute("CHECKPOINT")
                for name, rates, cpus in (("store", ours, our_cpu), ("bare", bare, bare_cpu)):
                    figures[f"{name}, {ids}"] = {
                        "messages_per_second": round(rates.median),
                        "spread": rates.spread,
                        "client_cpu_us_per_message": round(cpus.median, 2),
                    }
                targets.append(Target(f"rate, store / bare, {ids}", ratio(ours, bare), 0.6, False))
        database.dispose()
    return record("sink_write", figures, targets, versions("psycopg", "sqlalchemy", "orjson"))


if __name__ == "__main__":
    sys.exit(main())
