from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection, event

from consumers.handlers import as_handler
from consumers.sinks import NotTried
from consumers.sinks.python import BUDGET, PythonSink
from forebay import Message, Reject, RetryLater, Unavailable
from forebay.brokers.api import Delivery
from forebay.errors import IdempotencyConflict, MessageRejected, SinkMisconfigured, SinkUnavailable
from forebay.ids import new_id
from forebay.storage.classify import TransientError
from forebay.storage.database import Database
from forebay.storage.once import Claims, claim
from forebay.storage.schema import migrate
from forebay.storage.settings import DatabaseSettings
from tests.unit.consumers.build import FakeClock, delivery


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path}/forebay.db", DatabaseSettings(lock_timeout=0.05))
    migrate(database)
    with database.begin() as db:
        db.execute(sa.text("CREATE TABLE stock (item TEXT PRIMARY KEY, n INTEGER CHECK (n < 100))"))
    yield database
    database.dispose()


def sink_for(function: Callable[..., Any], database: Database | None, **more: Any) -> PythonSink:
    return PythonSink(as_handler(function), "orders", database, **more)


def batch(count: int) -> list[Delivery]:
    return [delivery(new_id(), body=str(n).encode()) for n in range(count)]


def insert(message: Message, db: Connection) -> None:
    n = int(message.body)
    db.execute(sa.text("INSERT INTO stock VALUES (:item, :n)"), {"item": message.id, "n": n})


def stock(database: Database) -> set[int]:
    with database.read() as db:
        return set(db.execute(sa.text("SELECT n FROM stock")).scalars())


def done(database: Database) -> int:
    with database.read() as db:
        count: int = db.execute(sa.text("SELECT count(*) FROM processed_messages")).scalar_one()
        return count


async def test_an_effect_happens_once_however_often_the_message_comes(database: Database) -> None:
    sink = sink_for(insert, database)
    deliveries = batch(5)

    first = await sink.write(deliveries)
    second = await sink.write(deliveries)

    assert [r.error for r in first + second] == [None] * 10
    assert [r.duplicate for r in first + second] == [False] * 5 + [True] * 5
    assert stock(database) == {0, 1, 2, 3, 4}


async def test_an_id_twice_in_one_batch_has_one_effect(database: Database) -> None:
    deliveries = batch(1) * 2

    results = await sink_for(insert, database).write(deliveries)

    assert [(r.error, r.duplicate) for r in results] == [(None, False), (None, True)]


async def test_a_known_id_with_another_body_is_a_conflict_and_has_no_effect(database: Database) -> None:
    sink = sink_for(insert, database)
    [one] = batch(1)
    await sink.write([one])

    [result] = await sink.write([delivery(one.message.id, body=b"77")])

    assert isinstance(result.error, IdempotencyConflict)
    assert stock(database) == {0}


@pytest.mark.parametrize("error", [Reject("no"), RetryLater(9), ValueError("odd")])
async def test_one_that_fails_loses_its_own_effect_and_no_other(database: Database, error: Exception) -> None:
    def handle(message: Message, db: Connection) -> None:
        insert(message, db)
        if message.body == b"2":
            raise error

    sink = sink_for(handle, database)
    deliveries = batch(5)
    results = await sink.write(deliveries)

    assert [r.error for r in results] == [None, None, error, None, None]
    assert stock(database) == {0, 1, 3, 4}
    assert done(database) == 4


async def test_one_that_failed_is_handled_when_it_comes_again(database: Database) -> None:
    failing = True

    def handle(message: Message, db: Connection) -> None:
        insert(message, db)
        if failing:
            raise ValueError("not yet")

    sink = sink_for(handle, database)
    deliveries = batch(1)
    await sink.write(deliveries)
    failing = False
    [result] = await sink.write(deliveries)

    assert (result.error, result.duplicate) == (None, False)
    assert stock(database) == {0}


async def test_unavailable_undoes_the_batch_and_counts_nothing(database: Database) -> None:
    def handle(message: Message, db: Connection) -> None:
        insert(message, db)
        if message.body == b"3":
            raise Unavailable("the warehouse does not answer", retry_after=7)

    with pytest.raises(SinkUnavailable, match="warehouse") as caught:
        await sink_for(handle, database).write(batch(5))

    assert caught.value.retry_after == 7
    assert stock(database) == set()
    assert done(database) == 0


async def test_what_was_handled_outside_before_an_outage_is_not_handled_again(database: Database) -> None:
    handled = []
    down = True

    def handle(message: Message) -> None:
        if message.body == b"3" and down:
            raise Unavailable("the warehouse does not answer")
        handled.append(message.body)

    sink = sink_for(handle, database)
    deliveries = batch(5)
    with pytest.raises(Unavailable, match="warehouse"):
        await sink.write(deliveries)
    down = False
    results = await sink.write(deliveries)

    assert handled == [b"0", b"1", b"2", b"3", b"4"]
    assert [r.duplicate for r in results] == [True, True, True, False, False]


async def test_a_record_that_meets_another_writer_does_not_repeat_the_work(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    handled = []
    fails = iter([False, True, False])  # the look before, the record, the record again

    def handle(message: Message) -> None:
        handled.append(message.body)

    def busy(*args: Any) -> Claims:
        if next(fails):
            raise TransientError("SQLITE_BUSY: database is locked")
        return claim(*args)

    monkeypatch.setattr("consumers.sinks.python.claim", busy)
    results = await sink_for(handle, database).write(batch(3))

    assert [r.error for r in results] == [None] * 3
    assert handled == [b"0", b"1", b"2"]
    assert done(database) == 3


async def test_a_constraint_that_is_checked_at_commit_kills_only_that_message(database: Database) -> None:
    with database.begin() as db:
        db.execute(sa.text("CREATE TABLE parent (n INTEGER PRIMARY KEY)"))
        db.execute(sa.text("INSERT INTO parent VALUES (0), (2)"))
        db.execute(sa.text("CREATE TABLE child (n INTEGER REFERENCES parent DEFERRABLE INITIALLY DEFERRED)"))

    def handle(message: Message, db: Connection) -> None:
        db.execute(sa.text("INSERT INTO child VALUES (:n)"), {"n": int(message.body)})

    event.listen(database.engine, "connect", lambda c, _: c.execute("PRAGMA foreign_keys = on"))
    database.dispose()
    deliveries = batch(3)
    results = await sink_for(handle, database).write(deliveries)

    assert [type(r.error) for r in results] == [type(None), MessageRejected, type(None)]
    assert done(database) == 2


async def test_a_constraint_of_the_users_table_kills_only_that_message(database: Database) -> None:
    def handle(message: Message, db: Connection) -> None:
        value = 100 if message.body == b"1" else int(message.body)
        db.execute(sa.text("INSERT INTO stock VALUES (:item, :n)"), {"item": message.id, "n": value})

    results = await sink_for(handle, database).write(batch(3))

    assert isinstance(results[1].error, MessageRejected)
    assert "CHECK" in results[1].error.error_class
    assert stock(database) == {0, 2}


async def test_a_missing_table_pauses_the_queue(database: Database) -> None:
    def handle(message: Message, db: Connection) -> None:
        db.execute(sa.text("INSERT INTO stok VALUES (1)"))

    with pytest.raises(SinkMisconfigured, match="stok"):
        await sink_for(handle, database).write(batch(1))


async def test_a_locked_database_is_an_outage(database: Database) -> None:
    sink = sink_for(insert, database)
    with database.begin(), pytest.raises(SinkUnavailable):
        await sink.write(batch(1))


@pytest.mark.parametrize("what", ["commit", "rollback"])
@pytest.mark.parametrize("swallows", [True, False])
async def test_a_handler_that_ends_its_transaction_harms_no_other_message(
    database: Database, what: str, swallows: bool
) -> None:
    def handle(message: Message, db: Connection) -> None:
        insert(message, db)
        if message.body == b"2":
            try:
                getattr(db, what)()
            except Exception:
                if not swallows:
                    raise

    sink = sink_for(handle, database)
    results = await sink.write(batch(5))

    assert [r.error is None for r in results] == [True, True, False, True, True]
    assert "leave commit and rollback to Forebay" in str(results[2].error)
    assert stock(database) == {0, 1, 3, 4}
    assert done(database) == 4


async def test_a_handler_that_keeps_a_database_error_to_itself_harms_no_other(postgres_url: str) -> None:
    """PostgreSQL then refuses all that follows in the transaction, up to the COMMIT."""
    database = Database(postgres_url)
    migrate(database)

    def handle(message: Message, db: Connection) -> None:
        if message.body == b"1":
            with contextlib.suppress(sa.exc.DBAPIError):
                db.execute(sa.text("SELECT 1 / 0"))

    results = await sink_for(handle, database).write(batch(3))

    assert [r.error is None for r in results] == [True, False, True]
    assert done(database) == 2
    database.dispose()


async def test_slow_messages_do_not_hold_the_rest_of_the_batch(database: Database) -> None:
    clock = FakeClock()

    def handle(message: Message, db: Connection) -> None:
        insert(message, db)
        clock.advance(BUDGET / 2)

    results = await sink_for(handle, database, clock=clock).write(batch(5))

    assert [type(r.error) for r in results] == [type(None), type(None), NotTried, NotTried, NotTried]
    assert stock(database) == {0, 1}


async def test_a_batch_handler_gets_the_batch_without_what_is_done_already(database: Database) -> None:
    seen: list[list[bytes]] = []

    def handle(messages: list[Message], db: Connection) -> None:
        seen.append([m.body for m in messages])
        for message in messages:
            insert(message, db)

    sink = sink_for(handle, database)
    deliveries = batch(4)
    await sink.write(deliveries[:2])
    await sink.write(deliveries)

    assert seen == [[b"0", b"1"], [b"2", b"3"]]


@pytest.mark.parametrize("takes_db", [True, False])
async def test_the_bad_message_of_a_batch_is_found_by_halves(database: Database, takes_db: bool) -> None:
    calls = 0
    handled: set[bytes] = set()

    def without_db(messages: list[Message]) -> None:
        nonlocal calls
        calls += 1
        if any(m.body == b"13" for m in messages):
            raise Reject("unlucky")
        handled.update(m.body for m in messages)

    def with_db(messages: list[Message], db: Connection) -> None:
        for message in messages:
            insert(message, db)
        without_db(messages)

    sink = sink_for(with_db if takes_db else without_db, database)
    results = await sink.write(batch(32))

    assert [i for i, r in enumerate(results) if r.error is not None] == [13]
    assert len(handled) == 31
    assert calls == 11  # 1 + 2 * log2(32)
    assert done(database) == 31


async def test_a_batch_handler_that_asks_for_later_is_asked_later_for_all_of_it(database: Database) -> None:
    def handle(messages: list[Message]) -> None:
        raise RetryLater(5)

    results = await sink_for(handle, database).write(batch(3))

    assert [type(r.error) for r in results] == [RetryLater] * 3


async def test_a_handler_without_db_keeps_a_record_too(database: Database) -> None:
    handled = []

    def handle(message: Message) -> None:
        handled.append(message.body)
        if message.body == b"1":
            raise ValueError("odd")

    sink = sink_for(handle, database)
    deliveries = batch(3)
    await sink.write(deliveries)
    results = await sink.write(deliveries)

    assert handled == [b"0", b"1", b"2", b"1"]
    assert [r.duplicate for r in results] == [True, False, True]


async def test_without_a_database_only_repeats_within_a_batch_are_known() -> None:
    handled = []

    def handle(message: Message) -> None:
        handled.append(message.body)

    [one] = batch(1)
    other = delivery(one.message.id, body=b"other")
    results = await sink_for(handle, None).write([one, one, other])

    assert handled == [b"0"]
    assert results[1].duplicate
    assert isinstance(results[2].error, IdempotencyConflict)


async def test_an_async_handler_does_not_hold_up_the_event_loop(database: Database) -> None:
    async def handle(message: Message, db: Connection) -> None:
        await asyncio.sleep(0.05)
        insert(message, db)

    sink = sink_for(handle, database)
    writing = asyncio.create_task(sink.write(batch(2)))
    ticks = 0
    while not writing.done():  # the loop's own turning is what is counted
        ticks += 1
        await asyncio.sleep(0.001)
    await sink.close()

    assert stock(database) == {0, 1}
    assert ticks > 5  # a loop that is held up turns once or twice
