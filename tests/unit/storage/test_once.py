"""The once-only record and the effect are one transaction."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from forebay import ids
from forebay.errors import IdempotencyConflict
from forebay.storage.database import Database
from forebay.storage.dead_letters import DeadLetterStore
from forebay.storage.once import claim
from tests.unit.storage.deliveries import dead, delivery

HERE = "handler:orders"


@pytest.fixture
def effects(database: Database) -> Callable[[], int]:
    with database.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE effects (id text)")

    def count() -> int:
        with database.read() as connection:
            return int(connection.exec_driver_sql("SELECT count(*) FROM effects").scalar_one())

    return count


def test_an_id_is_new_once_per_destination(database: Database) -> None:
    batch = [delivery(b"%d" % n) for n in range(3)]
    everyone = {d.message.id for d in batch}
    with database.begin() as connection:
        assert claim(connection, HERE, batch) == everyone
        assert claim(connection, HERE, batch) == set()
    with database.begin() as connection:
        assert claim(connection, HERE, batch) == set()
        assert claim(connection, "handler:clicks", batch) == everyone
        assert claim(connection, HERE, []) == set()


def test_what_became_of_each_delivery_is_told_in_order(database: Database) -> None:
    old = delivery(b"old")
    with database.begin() as connection:
        claim(connection, HERE, [old])
    new = delivery(b"new")
    batch = [
        new,
        delivery(b"old", id=old.message.id),
        delivery(b"other", id=old.message.id),
        delivery(b"new", id=new.message.id),
        delivery(b"newer", id=new.message.id),
    ]

    with database.begin() as connection:
        claims = claim(connection, HERE, batch)

    assert claims == {new.message.id}
    assert [(r.duplicate, type(r.error)) for r in claims.results] == [
        (False, type(None)),
        (True, type(None)),
        (False, IdempotencyConflict),
        (True, type(None)),
        (False, IdempotencyConflict),
    ]
    error = claims.results[2].error
    assert isinstance(error, IdempotencyConflict)
    assert error.new_id == ids.conflict_id(old.message.id, b"other")


def test_a_rolled_back_effect_takes_its_record_with_it(
    database: Database, effects: Callable[[], int]
) -> None:
    batch = [delivery()]

    def handle(fail: bool) -> None:
        with database.begin() as connection:
            for id in claim(connection, HERE, batch):
                connection.exec_driver_sql(f"INSERT INTO effects VALUES ('{id}')")
            if fail:
                raise RuntimeError("the handler failed")

    with pytest.raises(RuntimeError):
        handle(fail=True)
    assert effects() == 0
    handle(fail=False)
    handle(fail=False)
    assert effects() == 1


def test_two_that_handle_the_same_messages_at_once_have_one_effect(
    database: Database, effects: Callable[[], int], another: Callable[[], Database]
) -> None:
    batch = [delivery(b"%d" % n) for n in range(30)]
    together = threading.Barrier(2)
    second = another()

    def handle(where: Database) -> None:
        together.wait(10)
        with where.begin() as connection:
            for id in claim(connection, HERE, batch):
                connection.exec_driver_sql(f"INSERT INTO effects VALUES ('{id}')")

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(handle, [database, second]))

    assert effects() == 30


def test_handling_resolves_the_open_dead_letter_of_this_destination(database: Database) -> None:
    letters = DeadLetterStore(database)
    mine = dead(b"a", destination=HERE)
    letters.archive([
        mine, dead(b"a", id=mine.message.id, destination="elsewhere"), other := dead(b"b", destination=HERE)
    ])  # fmt: skip

    with database.begin() as connection:
        claim(connection, HERE, [delivery(b"a", id=mine.message.id), delivery(b"x", id=other.message.id)])

    assert {r.destination: r.status for r in letters.get(mine.message.id)} == {
        HERE: "resolved",
        "elsewhere": "dead",
    }
    assert [r.status for r in letters.get(other.message.id)] == ["dead"]
