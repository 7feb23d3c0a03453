"""What is set aside behind a failed message in the queue file, and that all of it comes back."""

from __future__ import annotations

from pathlib import Path

import apsw
import pytest

from forebay.brokers.api import Ack, Retry
from forebay.brokers.sqlite import parking, schema
from forebay.brokers.sqlite.broker import SQLiteBroker
from forebay.brokers.sqlite.settings import SQLiteSettings
from forebay.testing.broker_contract.harness import FAILURE, collect, ids, message, publish

SETTINGS = SQLiteSettings(ballast_bytes=0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


def rows(path: Path, query: str) -> list[tuple[object, ...]]:
    db = apsw.Connection(str(path))
    try:
        return db.execute(query).fetchall()
    finally:
        db.close()


async def test_a_key_with_a_long_backlog_does_not_keep_others_from_being_found(path: Path) -> None:
    """More of it is in the way than one look goes through."""
    async with SQLiteBroker.open(path, SETTINGS) as broker:
        await broker.declare("orders")
        bad = [message(str(n).encode(), key="bad") for n in range(12_001)]
        good = message(key="good")
        for start in range(0, len(bad), 1_000):
            await publish(broker, "orders", bad[start : start + 1_000])
        await publish(broker, "orders", [good])
        async with broker.subscribe("orders", prefetch=5, ordered=True) as subscription:
            [head] = await subscription.receive(1, 1)
            await subscription.settle([Retry(head, 3.0, FAILURE)])

            [found] = await collect(subscription, 1, 2.9)

            assert found.message.id == good.id
            depth = await broker.depth("orders")
            assert (depth.waiting, depth.scheduled, depth.in_hand) == (12_000, 1, 1)
            [again] = await collect(subscription, 1, 5)
            assert (again.message.id, again.attempt) == (bad[0].id, 2)
            await subscription.settle([Ack(again), Ack(found)])
            assert ids(await collect(subscription, 5, 2)) == ids(bad[1:6])


async def test_no_more_is_set_aside_than_one_transaction_should_bring_back(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parking, "MOST_SET_ASIDE", 3)
    async with SQLiteBroker.open(path, SETTINGS) as broker:
        await broker.declare("orders")
        bad = [message(key="bad") for _ in range(8)]
        await publish(broker, "orders", bad)
        async with broker.subscribe("orders", prefetch=10, ordered=True) as subscription:
            [head] = await subscription.receive(1, 1)
            await subscription.settle([Retry(head, 0.3, FAILURE)])
            assert await subscription.receive(5, 0.1) == []
            assert rows(path, "select count(*) from slot where due < 0") == [(3,)]
            [head] = await collect(subscription, 1, 2)
            await subscription.settle([Ack(head)])
            assert ids(await collect(subscription, 7, 2)) == ids(bad[1:])
    assert rows(path, "select * from parked") == []


async def test_a_head_that_somebody_removed_holds_nothing_back(path: Path) -> None:
    async with SQLiteBroker.open(path, SETTINGS) as broker:
        await broker.declare("orders")
        sent = [message(key="k") for _ in range(3)]
        await publish(broker, "orders", sent)
        async with broker.subscribe("orders", prefetch=10, ordered=True) as subscription:
            [head] = await subscription.receive(1, 1)
            await subscription.settle([Retry(head, 3600, FAILURE)])
            assert await subscription.receive(5, 0.1) == []
            rows(path, "delete from slot where due > 0; delete from message where seq = 1")
            await publish(broker, "orders", [message(key="k")])
            assert ids(await collect(subscription, 3, 3))[0] == sent[1].id


async def test_a_file_of_the_first_release_gets_the_table_of_parked_keys(path: Path) -> None:
    async with SQLiteBroker.open(path, SETTINGS) as broker:
        await broker.declare("orders")
        await publish(broker, "orders", [message(key="k")])
    db = schema.open_file(path, create=False)
    db.execute("drop table parked")
    db.pragma("user_version", 1)
    db.close()
    async with (
        SQLiteBroker.open(path, SETTINGS) as broker,
        broker.subscribe("orders", prefetch=1, ordered=True) as subscription,
    ):
        [head] = await subscription.receive(1, 1)
        await subscription.settle([Retry(head, 0, FAILURE)])
        [again] = await subscription.receive(1, 1)
        assert again.attempt == 2
