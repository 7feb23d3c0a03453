"""Large batches, which PostgreSQL works on while their rows are still being made, end as small ones do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from forebay.brokers.api import Delivery
from forebay.errors import MessageRejected
from forebay.storage import postgresql
from forebay.storage.database import Database
from forebay.storage.messages import MessageStore
from forebay.storage.postgresql import FIRST
from forebay.storage.rows import headers_jsons
from tests.unit.storage.deliveries import add_check, add_trigger, delivery, stored_count

COUNT = 4 * FIRST
PLACES = [0, FIRST - 1, FIRST, COUNT - 1]

pytestmark = pytest.mark.external


def in_order(count: int) -> list[Delivery]:
    return sorted((delivery(b"%d" % n) for n in range(count)), key=lambda d: d.message.id)


def session(database: Database) -> object:
    """The server's process behind the pooled connection."""
    with database.read() as connection:
        return connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("bad", ["the database refuses it", "no UUID"])
def test_one_bad_message_is_rejected_alone(postgres_database: Database, where: int, bad: str) -> None:
    add_check(postgres_database, "polite", "queue <> 'rude'")
    batch = in_order(COUNT)
    id = batch[where].message.id
    before = session(postgres_database)
    batch[where] = delivery(id=id, queue="rude") if bad != "no UUID" else delivery(id=id[:-1] + "?")

    results = MessageStore(postgres_database).write(batch)

    assert [n for n, r in enumerate(results) if r.error] == [where]
    assert isinstance(results[where].error, MessageRejected)
    assert not any(r.duplicate for r in results), "the first try has left something behind"
    assert stored_count(postgres_database) == COUNT - 1
    assert session(postgres_database) == before, "a good connection was given up"


@pytest.mark.parametrize("where", PLACES)
def test_what_the_commit_refuses_is_rejected_alone(postgres_database: Database, where: int) -> None:
    add_trigger(postgres_database, "IF NEW.queue = 'rude' THEN RAISE EXCEPTION ''; END IF", at_commit=True)
    batch = in_order(COUNT)
    batch[where] = delivery(id=batch[where].message.id, queue="rude")

    results = MessageStore(postgres_database).write(batch)

    assert [n for n, r in enumerate(results) if r.error] == [where]
    assert isinstance(results[where].error, MessageRejected)
    assert stored_count(postgres_database) == COUNT - 1


@pytest.mark.parametrize("where", PLACES)
def test_what_was_stored_before_is_a_duplicate(postgres_database: Database, where: int) -> None:
    store, batch = MessageStore(postgres_database), in_order(COUNT)
    store.write([batch[where]])

    results = store.write(batch)

    assert [n for n, r in enumerate(results) if r.duplicate] == [where]
    assert not any(r.error for r in results)
    assert stored_count(postgres_database) == COUNT


def test_nothing_is_stored_if_we_fail_between_the_statements(
    postgres_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def failing(headers: Sequence[Mapping[str, str]]) -> list[bytes]:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RuntimeError("not foreseen")
        return headers_jsons(headers)

    monkeypatch.setattr(postgresql, "headers_jsons", failing)
    with (
        pytest.raises(RuntimeError, match="not foreseen"),
        postgres_database.statement() as connection,
    ):
        postgresql.insert_at_once(connection, in_order(COUNT), payload=True)
    monkeypatch.undo()

    assert stored_count(postgres_database) == 0
    assert not any(r.error or r.duplicate for r in MessageStore(postgres_database).write(in_order(COUNT)))
