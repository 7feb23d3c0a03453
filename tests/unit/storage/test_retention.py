"""Once-only records are forgotten by age, but never while a dead letter might still need them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from forebay.brokers.api import Death, Failure
from forebay.storage.database import Database
from forebay.storage.dead_letters import DeadLetterFilter, DeadLetterStore
from forebay.storage.once import claim
from forebay.storage.retention import forget_processed, oldest_open_dead_letter
from forebay.storage.tables import processed_messages
from tests.unit.storage.deliveries import delivery

DAY = 86_400.0


def handle(database: Database, count: int, *, days_ago: float) -> None:
    batch = [delivery() for _ in range(count)]
    with database.begin() as connection:
        claim(connection, "handler:orders", batch)
        connection.execute(
            sa.update(processed_messages)
            .where(processed_messages.c.id.in_([d.message.id for d in batch]))
            .values(processed_at=datetime.now(UTC) - timedelta(days=days_ago))
        )


def left(database: Database) -> int:
    with database.read() as connection:
        count = sa.select(sa.func.count()).select_from(processed_messages)
        return int(connection.execute(count).scalar_one())


def bury(database: Database, *, days_ago: float) -> None:
    one = delivery()
    one.message.accepted_at = datetime.now(UTC) - timedelta(days=days_ago)
    one.death = Death(
        failure=Failure(reason="no", error_class="No", destination="handler:orders"),
        queue="orders",
        attempts=1,
        died_at=datetime.now(UTC),
    )
    DeadLetterStore(database).archive([one])


def test_what_is_old_is_forgotten_in_batches(database: Database) -> None:
    handle(database, 25, days_ago=100)
    handle(database, 5, days_ago=10)
    pauses: list[float] = []

    assert forget_processed(database, older_than=90 * DAY, batch=10, sleep=pauses.append) == 25
    assert left(database) == 5
    assert len(pauses) == 3


def test_a_round_ends_somewhere(database: Database) -> None:
    handle(database, 30, days_ago=100)
    assert forget_processed(database, older_than=DAY, batch=10, at_most=20, sleep=lambda _: None) == 20
    assert left(database) == 10


def test_an_open_dead_letter_keeps_what_is_younger_than_it(database: Database) -> None:
    handle(database, 3, days_ago=100)
    handle(database, 4, days_ago=50)
    bury(database, days_ago=60)

    assert forget_processed(database, older_than=DAY, sleep=lambda _: None) == 3
    assert left(database) == 4

    store = DeadLetterStore(database)
    store.mark(store.list(DeadLetterFilter(), limit=10), status="discarded", expected="dead")
    assert oldest_open_dead_letter(database) is None
    assert forget_processed(database, older_than=DAY, sleep=lambda _: None) == 4
