"""The mapping is held against the real table, and what is wrong comes with its repair."""

from __future__ import annotations

import threading
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from forebay.errors import MessageRejected
from forebay.storage.database import Database
from forebay.storage.mapping.create import inspect, prepare
from forebay.storage.mapping.plan import TableMismatch
from forebay.storage.mapping.spec import ColumnSpec, Constant, TableSpec
from forebay.storage.mapping.store import MappedTable
from tests.unit.storage.flights import column, flight, make_table, rows, run, spec


def differences(database: Database, given: TableSpec) -> list[str]:
    with pytest.raises(TableMismatch) as error:
        prepare(database, given)
    return error.value.differences


def test_a_table_that_fits_is_a_plan(database: Database) -> None:
    make_table(database)

    found = prepare(database, spec(on_conflict="update"))

    assert [c.name for c in found.columns] == ["id", "carrier", "air_time", "seats", "note"]
    assert found.conflict == ("id",)


def test_a_missing_table_is_named(database: Database) -> None:
    assert differences(database, spec()) == [
        "it does not exist; create it, or set create = true to have that done"
    ]


def test_all_differences_are_told_at_once(database: Database) -> None:
    make_table(database)
    columns = (
        column("id", kind="json"), column("air_time", default="long"), column("Carrier"), column("gate"),
        ColumnSpec(name="seats", source=Constant("many")),
    )  # fmt: skip

    found = differences(database, spec(columns=columns))

    assert [line.partition(":")[0] for line in found] == [
        "column id", "column air_time", "column Carrier", "column gate", "column seats", "column carrier",
    ]  # fmt: skip
    assert "which does not hold 'json'; type may be \"integer\"" in found[0]
    assert "its default is not a number" in found[1]
    assert "the table has 'carrier'; names must agree in case" in found[2]
    assert "not in the table; add it to the table" in found[3]
    assert "its value is not a number" in found[4]
    assert (
        'NOT NULL without a default, and nothing fills it; give it a source (carrier = "/carrier")'
        in found[5]
    )


def test_conflict_columns_need_a_unique_index(database: Database) -> None:
    make_table(database)
    given = spec(on_conflict="update", conflict_columns=("carrier", "note"))

    [found] = differences(database, given)
    assert found.startswith("conflict_columns (carrier, note) have no unique index; CREATE UNIQUE INDEX ON")
    if database.dialect != "mysql":  # which has no partial indexes
        run(database, "CREATE UNIQUE INDEX one ON flights (carrier, note) WHERE seats > 1")
        assert differences(database, given) == [found]
        run(database, "CREATE UNIQUE INDEX other ON flights (note, carrier)")

        assert prepare(database, given).conflict == ("carrier", "note")


def test_mysql_cannot_choose_among_unique_indexes(mariadb_database: Database) -> None:
    make_table(mariadb_database)
    given = spec(on_conflict="ignore")
    assert prepare(mariadb_database, given)
    run(mariadb_database, "CREATE UNIQUE INDEX other ON flights (carrier, seats)")

    [found] = differences(mariadb_database, given)

    assert "on_conflict would also be about the unique index on (carrier, seats)" in found


def test_a_table_without_transactions_is_refused(mariadb_database: Database) -> None:
    run(mariadb_database, "CREATE TABLE flights (id integer PRIMARY KEY) ENGINE=MyISAM")

    [found] = differences(mariadb_database, spec("id"))

    assert found == "its engine MyISAM has no transactions; ALTER TABLE flights ENGINE=InnoDB"


@pytest.mark.parametrize(
    ("sql_type", "value", "stored"),
    [
        ("tinyint(1)", True, 1), ("tinyint", -128, -128), ("int unsigned", 2**32 - 1, 2**32 - 1),
        ("bigint unsigned", 2**64 - 1, 2**64 - 1), ("float", 1.5, 1.5), ("double", 0.1, 0.1),
        ("decimal(20,3)", "12345678901234567.123", "12345678901234567.123"), ("char(3)", "ab", "ab"),
        ("varchar(9)", "it's \\\\", "it's \\\\"), ("tinytext", "é%s", "é%s"),
        ("json", {"a": ["'"]}, '{"a":["\'"]}'),
        ("datetime(1)", "2013-01-01T05:00:00.5-05:00", "2013-01-01 10:00:00.5"),
        ("timestamp", "2013-01-01T05:00:00Z", "2013-01-01 05:00:00"), ("date", "1999-12-31", "1999-12-31"),
        ("time", "23:59:59", "23:59:59"), ("varbinary(9)", "aGk=", "hi"), ("enum('a','b')", "b", "b"),
        ("year", 1999, 1999), ("inet6", "::1", "::1"),
    ],
)  # fmt: skip
def test_every_type_of_mariadb_is_written(
    mariadb_database: Database, sql_type: str, value: Any, stored: Any
) -> None:
    make_table(mariadb_database, f"id integer, note {sql_type} NULL")

    table = MappedTable(mariadb_database, spec("id", "note"))
    results = table.write([flight(1, note=value), flight(2, note=None), flight(3, note=value)])

    assert [r.error for r in results] == [None] * 3
    text = "note" if isinstance(stored, (int, float)) else "CAST(note AS CHAR)"
    assert rows(mariadb_database, f"id, {text}") == [(1, stored), (2, None), (3, stored)]


@pytest.mark.parametrize(
    ("sql_type", "value", "reason"),
    [
        ("int unsigned", -1, "column note: out of range"), ("tinytext", "é" * 128, "longer than 255 bytes"),
        ("datetime", "2013-01-01T05:00:00.5Z", "more than 0 digits of a second"),
        ("timestamp", "2039-01-01T05:00:00Z", ""), ("enum('a','b')", "c", ""), ("inet6", "nowhere", ""),
        ("varbinary(1)", "aGk=", ""), ("varchar(9) CHARACTER SET latin1", "\u4e00", ""),
    ],
)  # fmt: skip
def test_what_mariadb_does_not_hold_exactly_is_rejected_alone(
    mariadb_database: Database, sql_type: str, value: Any, reason: str
) -> None:
    make_table(mariadb_database, f"id integer, note {sql_type} NULL")

    results = MappedTable(mariadb_database, spec("id", "note")).write(
        [flight(1, note=None), flight(2, note=value), flight(3, note=None)]
    )

    assert [r.error is None for r in results] == [True, False, True]
    assert isinstance(results[1].error, MessageRejected)
    assert reason in str(results[1].error)
    assert [row[0] for row in rows(mariadb_database, "id")] == [1, 3]


def test_a_generated_column_is_not_written(postgres_database: Database) -> None:
    make_table(postgres_database, "id integer, twice integer GENERATED ALWAYS AS (id * 2) STORED")

    [found] = differences(postgres_database, spec("id", "twice"))

    assert found == "column twice: the database generates it; take it out of the mapping"
    assert prepare(postgres_database, spec("id"))


@pytest.mark.parametrize(
    ("sql_type", "value", "stored"),
    [
        ("smallint", 5, 5), ("bigint", -(2**63), -(2**63)), ("real", 1.5, 1.5),
        ("double precision", 0.1, 0.1),
        ("numeric", "12345678901234567890.123", "12345678901234567890.123"), ("numeric(6,2)", 1.5, "1.50"),
        ("boolean", True, True), ("char(3)", "ab", "ab"), ("varchar(3)", "abc", "abc"), ("text", "é", "é"),
        ("timestamptz", "2013-01-01T05:00:00.5-05:00", "2013-01-01 10:00:00.5+00"),
        ("timestamp", "2013-01-01T05:00:00-05:00", "2013-01-01 10:00:00"),
        ("date", "1999-12-31", "1999-12-31"), ("time", "23:59:59", "23:59:59"),
        ("uuid", "019AAF0E-8d0c-7c52-b7a5-0d7f9f0f3a11", "019aaf0e-8d0c-7c52-b7a5-0d7f9f0f3a11"),
        ("json", {"a": [1]}, '{"a":[1]}'), ("jsonb", {"a": [1]}, '{"a": [1]}'), ("bytea", "aGk=", "\\x6869"),
        ("inet", "10.0.0.1", "10.0.0.1/32"), ("interval", "1 day", "1 day"), ("mood", "happy", "happy"),
        ("positive", 3, 3), ("short", "ab", "ab"), ("bit(3)", "101", "101"),
    ],
)  # fmt: skip
def test_every_type_of_postgresql_is_written(
    postgres_database: Database, sql_type: str, value: Any, stored: Any
) -> None:
    run(
        postgres_database,
        "CREATE TYPE mood AS ENUM ('happy', 'sad')",
        "CREATE DOMAIN positive AS integer CHECK (VALUE > 0)",
        "CREATE DOMAIN short AS varchar(2)",
    )
    make_table(postgres_database, f"id integer, note {sql_type}")

    table = MappedTable(postgres_database, spec("id", "note"))
    results = table.write([flight(1, note=value), flight(2, note=None), flight(3, note=value)])

    assert [r.error for r in results] == [None] * 3
    text = "note" if isinstance(stored, (int, float)) else "note::text"
    assert rows(postgres_database, f"id, {text}") == [(1, stored), (2, None), (3, stored)]


@pytest.mark.parametrize(
    ("sql_type", "value"),
    [("inet", "nowhere"), ("mood", "angry"), ("positive", -1), ("bit(3)", "1"), ("short", "abc")],
)
def test_what_only_postgresql_can_judge_is_rejected_alone(
    postgres_database: Database, sql_type: str, value: Any
) -> None:
    run(
        postgres_database,
        "CREATE TYPE mood AS ENUM ('happy', 'sad')",
        "CREATE DOMAIN positive AS integer CHECK (VALUE > 0)",
        "CREATE DOMAIN short AS varchar(2)",
    )
    make_table(postgres_database, f"id integer, note {sql_type}")

    results = MappedTable(postgres_database, spec("id", "note")).write(
        [flight(1, note=None), flight(2, note=value), flight(3, note=None)]
    )

    assert [r.error is None for r in results] == [True, False, True]
    assert [row[0] for row in rows(postgres_database, "id")] == [1, 3]


# ---- making tables


ALL = (
    column("id", kind="integer"), column("mid", "message:id"), column("at", "message:accepted_at"),
    column("client", "header:x"), ColumnSpec(name="source", source=Constant("nyc")),
    column("air_time", kind="float"), column("price", kind="decimal"), column("late", kind="boolean"),
    column("day", kind="date"), column("clock", kind="time"), column("tags", kind="json"),
    column("raw", "message:body"), column("note", kind="text"), column('odd "%s" name', "/odd", "text"),
)  # fmt: skip


def test_a_missing_table_is_made(database: Database) -> None:
    given = spec(columns=ALL, create=True, on_conflict="update", conflict_columns=("id",), extras="extras")
    prepare(database, given)
    sent = flight(
        1, price="12345678901234567890.5", late=True, day="2013-01-01", clock="05:00", tags=[1], odd="Київ"
    )

    assert prepare(database, given).description == inspect(database, given).description
    for _ in range(2):
        assert [r.error for r in MappedTable(database, given).write([sent])] == [None]
    found = rows(database, "id, note, source, tags, extras")
    assert found[0][:3] == (1, "flight 1", "nyc")
    assert "seats" in str(found[0][4])
    assert Decimal(rows(database, "price")[0][0]) == Decimal("12345678901234567890.5")


def test_missing_columns_are_added_and_nothing_else_is_changed(database: Database) -> None:
    make_table(database)
    MappedTable(database, spec()).write([flight(1)])

    given = spec(columns=(*spec().columns, column("gate", kind="text")), create=True)
    prepare(database, given)
    MappedTable(database, given).write([flight(2, gate="A1")])

    assert rows(database, "id, note, gate") == [(1, "flight 1", None), (2, "flight 2", "A1")]


def test_a_column_of_unknown_type_is_not_made(database: Database) -> None:
    make_table(database)

    [found] = differences(database, spec("id", "carrier", "gate", create=True))

    assert 'write gate = { from = "…", type = "text" }' in found


def test_several_who_start_together_make_it_once(database: Database, another: Callable[[], Database]) -> None:
    given = spec(columns=ALL, create=True)
    failed: list[BaseException] = []

    def start(own: Database) -> None:
        try:
            prepare(own, given)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=start, args=(another(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert failed == []
    assert inspect(database, given)


def test_a_table_in_another_schema_is_found(postgres_database: Database) -> None:
    run(postgres_database, "CREATE SCHEMA warehouse")
    make_table(postgres_database, name="warehouse.flights")

    MappedTable(postgres_database, spec(schema="warehouse")).write([flight(1)])

    assert rows(postgres_database, "id", "warehouse.flights") == [(1,)]
    assert spec(schema="warehouse").destination == "table:warehouse.flights"
