"""
What `MessageStore.write` adds to the insert itself: batches of 500 messages from memory into a database.

The bare loop of each database runs the same idempotent insert into the same table, made
beforehand, one transaction per batch: on PostgreSQL from arrays in the server's own
binary format, on MariaDB the ready text of a multi-row INSERT, on SQLite `executemany`
of ready tuples. Both are measured in turns on a server, or a file, of our own, with fsync.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import orjson
import psycopg
import pymysql

from bench.report import Series, Target, ratio, record, versions
from forebay.brokers.api import Delivery
from forebay.ids import id_from_key, new_id
from forebay.message import Message
from forebay.storage import mysql, pgarrays, postgresql, sqlite
from forebay.storage.database import Database
from forebay.storage.messages import MessageStore
from forebay.storage.mysqlconnection import SQL_MODE
from forebay.storage.schema import migrate
from tests.servers.mariadb import MariaDB
from tests.servers.postgres import Postgres

ROUNDS = int(os.environ.get("ROUNDS", "7"))
BATCHES = int(os.environ.get("BATCHES", "40"))
BATCH = 500
WHICH = os.environ.get("DATABASES", "postgresql,mariadb,sqlite").split(",")

_POSTGRESQL = """
INSERT INTO messages (id, body, queue, key, content_type, headers, payload, accepted_at, attempts, stored_at)
SELECT u.*, now() FROM unnest(
  %b::uuid[], %b::bytea[], %b::text[], %b::text[], %b::text[], %b::jsonb[], %b::jsonb[], %b::timestamptz[],
  %b::int4[]
) AS u
ON CONFLICT (id) DO NOTHING
RETURNING id
"""

_SQLITE = """
INSERT INTO messages (id, queue, key, content_type, headers, payload, body, accepted_at, attempts, stored_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO NOTHING
"""

Batches = list[list[Delivery]]
Loop = Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A database to write to, and the bare loop of its own."""

    url: str
    server: str
    target: float
    bare: Callable[[Batches], Loop]
    """The loop for these batches; what it takes to make it is not measured."""
    clear: Callable[[], None]


@contextmanager
def on_postgresql() -> Iterator[Place]:
    with Postgres() as server:
        url = server.create_database()
        with psycopg.connect(url, autocommit=True, prepare_threshold=None) as connection:

            def bare(work: Batches) -> Loop:
                arrays = [with_copies(batch) for batch in work]
                cursor = connection.cursor(binary=True)
                cursor.adapters.register_dumper(pgarrays.BinaryArray, pgarrays.BinaryArrayDumper)

                def run() -> None:
                    for parameters in arrays:
                        cursor.execute(_POSTGRESQL, parameters)
                        assert cursor.rowcount == BATCH

                return run

            def clear() -> None:
                connection.execute("TRUNCATE messages")
                connection.execute("CHECKPOINT")

            yield Place(url=url, server=server.version, target=0.9, bare=bare, clear=clear)


def with_copies(batch: list[Delivery]) -> list[pgarrays.BinaryArray]:
    """The columns of the table; of the JSON copies, which our own insert leaves to the server, too."""
    arrays = postgresql.columns(batch, payload=True)
    arrays[6] = pgarrays.jsonbs([d.message.body for d in batch])
    return arrays


@contextmanager
def on_mariadb() -> Iterator[Place]:
    with MariaDB() as server:
        url = server.create_database()
        with pymysql.connect(
            host="127.0.0.1", port=server.port, user="forebay", password=server.password,
            database=url.rpartition("/")[2], charset="utf8mb4", autocommit=True, sql_mode=SQL_MODE,
        ) as connection:  # fmt: skip

            def bare(work: Batches) -> Loop:
                texts = [
                    mysql.INSERT
                    + b",".join(mysql.row(d, payload=True) for d in batch)
                    + b" ON DUPLICATE KEY UPDATE id = messages.id"
                    for batch in work
                ]

                def run() -> None:
                    for text in texts:
                        assert connection.query(text) == BATCH  # type: ignore[arg-type]  # bytes as well

                return run

            def clear() -> None:
                connection.query("TRUNCATE messages")

            yield Place(url=url, server=server.version, target=0.7, bare=bare, clear=clear)


@contextmanager
def on_sqlite() -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="forebay-sqlite-") as folder:
        file = Path(folder) / "forebay.db"
        url = f"sqlite:///{file}"
        made = Database(url)
        migrate(made)
        made.dispose()
        connection = sqlite3.connect(file, isolation_level=None)
        connection.execute("PRAGMA journal_mode=TRUNCATE")
        connection.execute("PRAGMA synchronous=FULL")

        def bare(work: Batches) -> Loop:
            now = sqlite.time_text(datetime.now(UTC))
            rows = [[sqlite.row(d, True, now) for d in batch] for batch in work]

            def run() -> None:
                for batch in rows:
                    connection.execute("BEGIN IMMEDIATE")
                    assert connection.executemany(_SQLITE, batch).rowcount == BATCH
                    connection.execute("COMMIT")

            return run

        def clear() -> None:
            connection.execute("DELETE FROM messages")

        yield Place(url=url, server=f"SQLite {sqlite3.sqlite_version}", target=0.7, bare=bare, clear=clear)
        connection.close()


def body(number: int) -> bytes:
    """A record of 20 fields, as a business has them: costlier to check than one long text."""
    fields: dict[str, object] = {f"field_{n:02}": n * number for n in range(10)}
    fields |= {f"text_{n:02}": f"some words {number % 97}" for n in range(10)}
    return orjson.dumps(fields)


def batches(*, keyed: bool) -> Batches:
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


def in_order(work: Batches) -> Batches:
    return [sorted(batch, key=lambda d: d.message.id) for batch in work]


def store_loop(store: MessageStore, work: Batches) -> Loop:
    def run() -> None:
        for batch in work:
            results = store.write(batch)
            assert not any(r.error or r.duplicate for r in results)

    return run


def timed(run: Loop) -> tuple[float, float]:
    """Messages per second, and µs of our own CPU time per message."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    count = BATCHES * BATCH
    return count / (time.perf_counter() - wall), (time.process_time() - cpu) / count * 1e6


def measure(name: str, place: Place, figures: dict[str, object]) -> Iterator[Target]:
    database = Database(place.url)
    migrate(database)
    store = MessageStore(database)
    figures[f"{name}, server"] = place.server
    for keyed in (False, True):
        ids = "ids from idempotency keys" if keyed else "ids made by the gateway"
        rates = {"bare": Series(), "store": Series()}
        cpus = {"bare": Series(), "store": Series()}
        for number in range(ROUNDS + 1):
            print(f"{name}, {ids}: round {number} of {ROUNDS}", file=sys.stderr)
            for variant in rates:
                work = batches(keyed=keyed)
                loop = place.bare(in_order(work)) if variant == "bare" else store_loop(store, work)
                rate, cpu = timed(loop)
                if number:  # the first round warms up
                    rates[variant].add(rate)
                    cpus[variant].add(cpu)
                place.clear()
        for variant, series in rates.items():
            figures[f"{name}, {variant}, {ids}"] = {
                "messages_per_second": round(series.median),
                "spread": series.spread,
                "client_cpu_us_per_message": round(cpus[variant].median, 2),
            }
        held = ratio(rates["store"], rates["bare"])
        yield Target(f"{name}: rate, store / bare, {ids}", held, place.target, False)
    database.dispose()


def main() -> int:
    figures: dict[str, object] = {
        "method": f"{BATCHES} batches of {BATCH}, {ROUNDS} interleaved rounds; 450-byte bodies of 20 fields"
    }
    targets: list[Target] = []
    for name, opened in (("postgresql", on_postgresql), ("mariadb", on_mariadb), ("sqlite", on_sqlite)):
        if name in WHICH:
            with opened() as place:
                targets += measure(name, place, figures)
    return record("sink_write", figures, targets, versions("psycopg", "pymysql", "sqlalchemy", "orjson"))


if __name__ == "__main__":
    sys.exit(main())
