"""Messages become rows of a user's table: once, exactly, and without harm to their neighbours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import sqlalchemy as sa

from forebay.brokers.api import Delivery
from forebay.errors import IdempotencyConflict, MessageRejected, SinkMisconfigured
from forebay.sinks import WriteResult
from forebay.storage.database import Database
from forebay.storage.dead_letters import DeadLetterStore
from forebay.storage.mapping.spec import ColumnSpec, Constant
from forebay.storage.mapping.store import MappedTable
from tests.unit.storage.deliveries import dead, delivery
from tests.unit.storage.flights import column, flight, make_table, rows, run, spec


def said(results: list[WriteResult]) -> list[str]:
    """ "new", "duplicate" or the reason of each."""
    return [str(r.error) if r.error else "duplicate" if r.duplicate else "new" for r in results]


def rejection(result: WriteResult) -> MessageRejected:
    assert isinstance(result.error, MessageRejected), result.error
    return result.error


def test_each_message_becomes_a_row(database: Database) -> None:
    make_table(database)

    results = MappedTable(database, spec()).write([flight(2), flight(1, air_time=None)])

    assert said(results) == ["new", "new"]
    assert rows(database, "id, carrier, air_time, seats, note") == [
        (1, "UA", None, 150, "flight 1"),
        (2, "UA", 227.5, 150, "flight 2"),
    ]


def test_values_come_from_fields_headers_the_message_and_constants(database: Database) -> None:
    make_table(database, "id varchar(36), client text, source text, n integer, inner_n integer, body text")
    sent = delivery(b'{"a": {"b": [1, 2]}}', headers={"x-client": "web"}, attempt=3)
    columns = (
        column("id", "message:id"),
        column("client", "header:X-Client"),
        ColumnSpec(name="source", source=Constant("nyc")),
        column("n", "message:attempt"),
        column("inner_n", "/a/b/1"),
        column("body", "", "json"),
    )

    MappedTable(database, spec(columns=columns)).write([sent])

    assert rows(database) == [(sent.message.id, "web", "nyc", 3, 2, '{"a":{"b":[1,2]}}')]


def test_what_no_column_takes_is_in_extras(database: Database) -> None:
    make_table(database, "id integer, extras text")

    MappedTable(database, spec("id", extras="extras")).write(
        [delivery(b'{"id": 1, "big": 1.2345678901234567890123, "c": null}')]
    )

    assert rows(database) == [(1, '{"big":1.2345678901234567890123,"c":null}')]


def test_a_text_that_means_null_is_null_and_a_default_stands_in_for_it(database: Database) -> None:
    make_table(database)
    columns = (
        column("id"), column("carrier", default="??"), column("air_time", nulls=frozenset({"NA", ""})),
    )  # fmt: skip
    batch = [flight(1, air_time="NA", carrier=None), flight(2, air_time=""), flight(3, air_time="12.5")]

    assert said(MappedTable(database, spec(columns=columns)).write(batch)) == ["new"] * 3
    assert rows(database, "id, carrier, air_time") == [(1, "??", None), (2, "UA", None), (3, "UA", 12.5)]


@pytest.mark.parametrize(
    ("sent", "reason", "error_class"),
    [
        (flight(7, air_time="fast"), "column air_time: not a number", "UnfitValue"),
        (flight(7, id=1.5), "column id: not a whole number", "UnfitValue"),
        (flight(7, carrier="LONG"), "column carrier: longer than 2 characters", "UnfitValue"),
        (flight(7, carrier=None), "column carrier: missing", "MissingValue"),
        (flight(7, note="a\x00b"), "column note: holds a NUL character", "UnfitValue"),
        (flight(7, note={"a": 1}), "column note: not text", "UnfitValue"),
        (delivery(b"{"), "the body is not JSON", "NotJson"),
        (delivery(b"[1]"), "the body is not a JSON object", "NotAnObject"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("position", [0, 2, 4])
def test_what_does_not_fit_is_rejected_alone(
    database: Database, sent: Delivery, reason: str, error_class: str, position: int
) -> None:
    make_table(database)
    batch = [flight(n) for n in range(1, 5)]
    batch.insert(position, sent)

    results = MappedTable(database, spec()).write(batch)

    assert said(results) == ["new"] * position + [reason] + ["new"] * (4 - position)
    assert rejection(results[position]).error_class == error_class
    assert len(rows(database)) == 4


def test_what_only_the_database_refuses_is_rejected_alone(database: Database) -> None:
    make_table(database)
    batch = [flight(n) for n in range(20)]
    batch[13] = flight(13, seats=-1)
    table = MappedTable(database, spec())

    results = table.write(batch)

    assert [isinstance(r.error, MessageRejected) for r in results] == [n == 13 for n in range(20)]
    assert len(rows(database)) == 19
    assert said(table.write(batch))[12:15] == ["duplicate", said(results)[13], "duplicate"]


def test_a_row_that_is_there_is_an_error_by_default(database: Database) -> None:
    make_table(database)
    table = MappedTable(database, spec())
    table.write([flight(1, note="first")])

    results = table.write([flight(1, note="second"), flight(2)])

    assert isinstance(results[0].error, MessageRejected)
    assert results[1].error is None
    assert rows(database, "id, note") == [(1, "first"), (2, "flight 2")]


def test_a_row_that_is_there_is_left_alone_with_ignore(database: Database) -> None:
    make_table(database)
    table = MappedTable(database, spec(on_conflict="ignore"))
    table.write([flight(1, note="first")])

    batch = [flight(1, note="second"), flight(2), flight(2, note="again")]

    assert said(table.write(batch)) == ["new"] * 3
    assert rows(database, "id, note") == [(1, "first"), (2, "flight 2")]
    assert said(table.write(batch)) == ["duplicate"] * 3


def test_with_update_the_last_message_about_a_row_counts(database: Database) -> None:
    make_table(database)
    table = MappedTable(database, spec(on_conflict="update"))
    table.write([flight(1, note="first")])

    batch = [flight(1, note="second"), flight(2, note="a"), flight(2, note="b"), flight(1, note="third")]

    assert said(table.write(batch)) == ["new"] * 4
    assert rows(database, "id, note") == [(1, "third"), (2, "b")]


def test_with_update_a_later_message_that_is_refused_does_not_count(database: Database) -> None:
    make_table(database)
    table = MappedTable(database, spec(on_conflict="update"))
    batch = [flight(1, note="good"), flight(1, note="bad", seats=-1)]

    results = table.write(batch)

    assert results[0].error is None
    assert isinstance(results[1].error, MessageRejected)
    assert rows(database, "id, note") == [(1, "good")]


def test_a_known_id_is_a_duplicate_or_a_conflict_whatever_it_holds(database: Database) -> None:
    make_table(database)
    table = MappedTable(database, spec())
    first = flight(1)
    id = first.message.id
    table.write([first])

    results = table.write([first, flight(2, id), delivery(b"no JSON", id=id), flight(3)])

    assert said(results)[0] == "duplicate"
    assert [type(r.error) for r in results[1:]] == [IdempotencyConflict, IdempotencyConflict, type(None)]
    assert len(rows(database)) == 2


def test_an_id_twice_in_a_batch_has_one_row(database: Database) -> None:
    make_table(database)
    first = flight(1)

    results = MappedTable(database, spec()).write([first, flight(2, first.message.id), replace(first)])

    assert said(results)[0::2] == ["new", "duplicate"]
    assert isinstance(results[1].error, IdempotencyConflict)
    assert len(rows(database)) == 1


def test_an_open_dead_letter_of_what_is_stored_is_resolved(database: Database) -> None:
    make_table(database)
    letters = DeadLetterStore(database)
    stored, other_bytes, elsewhere = flight(1), flight(2), flight(3)
    letters.archive(
        [
            dead(stored.message.body, id=stored.message.id, destination="table:flights"),
            dead(b"others", id=other_bytes.message.id, destination="table:flights"),
            dead(elsewhere.message.body, id=elsewhere.message.id, destination="http:elsewhere"),
        ]
    )

    MappedTable(database, spec()).write([stored, other_bytes, elsewhere])

    status = [letters.get(d.message.id)[0].status for d in (stored, other_bytes, elsewhere)]
    assert status == ["resolved", "dead", "dead"]


def test_an_id_that_is_no_uuid_harms_nobody(postgres_database: Database) -> None:
    make_table(postgres_database)

    results = MappedTable(postgres_database, spec()).write([flight(1), flight(2, "mine"), flight(3)])

    assert said(results) == ["new", "the id is not a UUID", "new"]


# ---- a table that changes while we run


def test_a_table_that_was_dropped_pauses_and_recovers(database: Database) -> None:
    make_table(database)
    table = MappedTable(database, spec())
    table.write([flight(1)])
    run(database, "DROP TABLE flights")

    for _ in range(2):
        with pytest.raises(SinkMisconfigured, match="flights"):
            table.write([flight(2)])
    with pytest.raises(SinkMisconfigured, match="does not exist"):
        table.check()
    make_table(database)

    assert said(table.write([flight(2)])) == ["new"]


def test_a_column_that_was_dropped_pauses_and_recovers(database: Database) -> None:
    make_table(database)
    table = MappedTable(database, spec())
    table.write([flight(1)])
    run(database, "ALTER TABLE flights RENAME COLUMN note TO remark")

    for _ in range(2):
        with pytest.raises(SinkMisconfigured, match="note"):
            table.write([flight(2)])
    run(database, "ALTER TABLE flights RENAME COLUMN remark TO note")

    assert said(table.write([flight(2)])) == ["new"]


def test_a_new_column_that_must_be_filled_pauses_and_rejects_nobody(postgres_database: Database) -> None:
    make_table(postgres_database)
    table = MappedTable(postgres_database, spec())
    table.write([flight(1)])
    run(
        postgres_database,
        "ALTER TABLE flights ADD COLUMN gate text NOT NULL DEFAULT ''",
        "ALTER TABLE flights ALTER COLUMN gate DROP DEFAULT",
    )

    with pytest.raises(SinkMisconfigured, match="column gate: NOT NULL without a default"):
        table.write([flight(2), flight(3)])
    run(postgres_database, "ALTER TABLE flights ALTER COLUMN gate SET DEFAULT ''")

    assert said(table.write([flight(2), flight(3)])) == ["new", "new"]


def test_a_column_that_became_narrower_rejects_only_what_no_longer_fits(postgres_database: Database) -> None:
    make_table(postgres_database)
    table = MappedTable(postgres_database, spec())
    table.write([flight(1)])
    run(postgres_database, "ALTER TABLE flights ALTER COLUMN note TYPE varchar(8)")

    results = table.write([flight(2), flight(3, note="far too long")])

    assert said(results) == ["new", "column note: longer than 8 characters"]


def test_a_column_of_another_type_is_written_as_that(postgres_database: Database) -> None:
    make_table(postgres_database)
    table = MappedTable(postgres_database, spec())
    table.write([flight(1)])
    run(postgres_database, "ALTER TABLE flights ALTER COLUMN seats TYPE numeric(12, 3)")

    assert said(table.write([flight(2), flight(3, seats=1.5)])) == ["new", "new"]


def test_a_privilege_that_was_revoked_pauses_and_recovers(postgres_database: Database) -> None:
    database = postgres_database
    make_table(database)
    run(
        database,
        "DROP ROLE IF EXISTS writer",
        "CREATE ROLE writer LOGIN PASSWORD 'w'",
        "GRANT ALL ON ALL TABLES IN SCHEMA public TO writer",
    )
    with database.read() as connection:
        info = connection.connection.driver_connection.info  # type: ignore[union-attr]
        url = f"postgresql://writer:w@{info.host}:{info.port}/{info.dbname}"
    theirs = Database(url)
    table = MappedTable(theirs, spec())
    try:
        table.write([flight(1)])
        run(database, "REVOKE INSERT ON flights FROM writer")

        for _ in range(2):
            with pytest.raises(SinkMisconfigured, match=r"privilege|permission denied"):
                table.write([flight(2)])
        with pytest.raises(SinkMisconfigured, match="GRANT INSERT"):
            table.check()
        run(database, "GRANT INSERT ON flights TO writer")

        assert said(table.write([flight(2)])) == ["new"]
    finally:
        theirs.dispose()
        run(database, "DROP OWNED BY writer", "DROP ROLE writer")


def test_two_writers_with_the_same_messages_store_each_once(
    database: Database, another: Callable[[], Database]
) -> None:
    make_table(database)
    batch = [flight(n) for n in range(50)]
    MappedTable(another(), spec()).write(batch[:30])

    results = MappedTable(another(), spec()).write(batch)

    assert said(results) == ["duplicate"] * 30 + ["new"] * 20
    with database.read() as connection:
        count = connection.execute(sa.text("SELECT count(*) FROM processed_messages")).scalar_one()
    assert count == len(rows(database)) == 50
