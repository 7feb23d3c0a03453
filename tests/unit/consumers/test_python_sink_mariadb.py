"""What handlers may do to a transaction of MariaDB, which forgets savepoints and commits unasked."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection

from consumers.handlers import as_handler
from consumers.sinks.python import PythonSink
from forebay import Message
from forebay.brokers.api import Delivery
from forebay.errors import MessageRejected, SinkUnavailable
from forebay.ids import new_id
from forebay.storage.database import Database
from forebay.storage.schema import migrate
from forebay.storage.settings import DatabaseSettings
from tests.unit.consumers.build import delivery

pytestmark = pytest.mark.external


@pytest.fixture
def database(mariadb_url: str) -> Iterator[Database]:
    database = Database(mariadb_url, DatabaseSettings(lock_timeout=1))
    migrate(database)
    with database.begin() as db:
        db.exec_driver_sql("CREATE TABLE stock (item VARCHAR(80) PRIMARY KEY, n INT CHECK (n < 100))")
    yield database
    database.dispose()


def sink_for(function: Callable[..., None], database: Database) -> PythonSink:
    return PythonSink(as_handler(function), "orders", database)


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

    results = await sink_for(handle, database).write(batch(5))

    assert [r.error is None for r in results] == [True, True, False, True, True]
    assert stock(database) == {0, 1, 3, 4}
    assert done(database) == 4


async def test_a_constraint_of_the_users_table_kills_only_that_message(database: Database) -> None:
    def handle(message: Message, db: Connection) -> None:
        value = 100 if message.body == b"1" else int(message.body)
        db.execute(sa.text("INSERT INTO stock VALUES (:item, :n)"), {"item": message.id, "n": value})

    results = await sink_for(handle, database).write(batch(3))

    assert isinstance(results[1].error, MessageRejected)
    assert str(results[1].error) == "4025 ER_CONSTRAINT_FAILED, constraint stock.n"
    assert stock(database) == {0, 2}


async def test_a_handler_may_keep_an_error_of_a_statement_to_itself(database: Database) -> None:
    """It has undone the statement and nothing else, other than on PostgreSQL."""

    def handle(message: Message, db: Connection) -> None:
        insert(message, db)
        with contextlib.suppress(sa.exc.IntegrityError):
            insert(message, db)

    results = await sink_for(handle, database).write(batch(3))

    assert [r.error for r in results] == [None] * 3
    assert (stock(database), done(database)) == ({0, 1, 2}, 3)


async def test_a_handler_that_makes_a_table_has_its_effect_once(database: Database) -> None:
    """DDL commits, and with it the effect and the record that it happened; the savepoint is gone."""

    def handle(message: Message, db: Connection) -> None:
        insert(message, db)
        db.exec_driver_sql("CREATE TABLE IF NOT EXISTS made (n INT)")

    sink = sink_for(handle, database)
    sent = batch(1)
    for _ in range(3):
        with contextlib.suppress(SinkUnavailable):
            await sink.write(sent)

    assert (stock(database), done(database)) == ({0}, 1)
    assert (await sink.write(sent))[0].duplicate
