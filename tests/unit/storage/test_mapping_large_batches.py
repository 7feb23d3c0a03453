"""Large batches, which PostgreSQL works on while their rows are still being made, end as small ones do."""

from __future__ import annotations

import pytest

from forebay.errors import MessageRejected
from forebay.storage.database import Database
from forebay.storage.mapping.store import MappedTable
from tests.unit.storage.deliveries import delivery
from tests.unit.storage.flights import flight, make_table, rows, run, spec

COUNT = 700


def recorded(database: Database) -> int:
    return int(rows(database, "count(*)", "processed_messages")[0][0])


def test_each_message_of_a_large_batch_becomes_a_row(database: Database) -> None:
    make_table(database)
    batch = [flight(n) for n in range(COUNT)]

    results = MappedTable(database, spec()).write(batch)

    assert [r.message_id for r in results] == [d.message.id for d in batch]
    assert not any(r.error or r.duplicate for r in results)
    assert rows(database, "id, note") == [(n, f"flight {n}") for n in range(COUNT)]
    assert recorded(database) == COUNT


@pytest.mark.parametrize("where", [0, 260, COUNT - 1])
@pytest.mark.parametrize("bad", ["no JSON", "does not fit", "the database refuses it", "no UUID"])
def test_one_bad_message_is_rejected_alone(postgres_database: Database, where: int, bad: str) -> None:
    make_table(postgres_database)
    batch = [flight(n) for n in range(COUNT)]
    batch[where] = {
        "no JSON": delivery(b"{"),
        "does not fit": flight(where, carrier="too long"),
        "the database refuses it": flight(where, seats=-1),
        "no UUID": flight(where, "no-uuid"),
    }[bad]

    results = MappedTable(postgres_database, spec()).write(batch)

    assert [n for n, r in enumerate(results) if r.error] == [where]
    assert isinstance(results[where].error, MessageRejected)
    assert len(rows(postgres_database)) == recorded(postgres_database) == COUNT - 1


def test_what_was_stored_before_is_a_duplicate(postgres_database: Database) -> None:
    make_table(postgres_database)
    table = MappedTable(postgres_database, spec())
    batch = [flight(n) for n in range(COUNT)]
    table.write(batch[-10:])

    results = table.write(batch)

    assert [r.duplicate for r in results] == [False] * (COUNT - 10) + [True] * 10
    assert not any(r.error for r in results)
    assert len(rows(postgres_database)) == recorded(postgres_database) == COUNT


def test_with_update_the_last_message_about_a_row_counts_in_whichever_part(
    postgres_database: Database,
) -> None:
    make_table(postgres_database)
    table = MappedTable(postgres_database, spec(on_conflict="update"))

    results = table.write([flight(n % 300, note=f"{n}") for n in range(COUNT)])

    assert not any(r.error or r.duplicate for r in results)
    last = {n % 300: str(n) for n in range(COUNT)}
    assert rows(postgres_database, "id, note") == sorted(last.items())


def test_nothing_is_recorded_of_a_batch_that_a_deferred_constraint_refuses_at_the_end(
    postgres_database: Database,
) -> None:
    make_table(postgres_database)
    run(
        postgres_database,
        "CREATE TABLE carriers (name varchar(2) PRIMARY KEY)",
        "INSERT INTO carriers VALUES ('UA')",
        "ALTER TABLE flights ADD FOREIGN KEY (carrier) REFERENCES carriers DEFERRABLE INITIALLY DEFERRED",
    )
    batch = [flight(n, carrier="XX" if n == 600 else "UA") for n in range(COUNT)]

    results = MappedTable(postgres_database, spec()).write(batch)

    assert [n for n, r in enumerate(results) if r.error] == [600]
    assert len(rows(postgres_database)) == recorded(postgres_database) == COUNT - 1
