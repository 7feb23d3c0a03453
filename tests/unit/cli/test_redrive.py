"""The engine behind `forebay dead-letters redrive`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from forebay.brokers.api import PublishResult
from forebay.brokers.memory import MemoryBroker, MemoryServer
from forebay.cli._redrive import Redrive
from forebay.errors import BrokerUnavailable
from forebay.message import Message
from forebay.storage.database import Database
from forebay.storage.dead_letters import DeadLetterFilter, DeadLetterStore
from forebay.storage.schema import migrate
from tests.unit.storage.deliveries import dead


class DownBroker(MemoryBroker):
    async def publish(
        self, queue: str, messages: Sequence[Message], *, timeout: float
    ) -> list[PublishResult]:
        raise BrokerUnavailable("connection refused")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DeadLetterStore]:
    database = Database(f"sqlite:///{tmp_path}/forebay.db")
    migrate(database)
    yield DeadLetterStore(database)
    database.dispose()


async def test_one_that_cannot_be_sent_back_does_not_hold_up_the_rest(store: DeadLetterStore) -> None:
    broker = MemoryBroker(MemoryServer())
    await broker.declare("orders")
    store.archive([dead(b"1", queue="gone"), dead(b"2", minute=1)])

    redrive = Redrive(broker, store, rate=1.9)  # one at a time
    await redrive.run(DeadLetterFilter(), limit=10)

    assert (redrive.sent, redrive.failed) == (1, 1)
    assert "'gone' is not declared" in redrive.why
    assert [(r.queue, r.status) for r in store.list(DeadLetterFilter(), limit=9)] == [
        ("gone", "dead"), ("orders", "redriving"),
    ]  # fmt: skip


async def test_a_broker_that_is_away_ends_it_at_once(store: DeadLetterStore) -> None:
    store.archive([dead(b"1"), dead(b"2", minute=1)])

    redrive = Redrive(DownBroker(MemoryServer()), store, rate=1.9)
    await redrive.run(DeadLetterFilter(), limit=10)

    assert (redrive.sent, redrive.failed, redrive.why) == (0, 1, "connection refused")
    assert store.count(DeadLetterFilter(status="dead")) == 2
