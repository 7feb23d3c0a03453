"""The embedded queue keeps the contract."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from forebay.brokers.api import Ack, Broker
from forebay.brokers.sqlite.broker import SQLiteBroker
from forebay.brokers.sqlite.files import Turn
from forebay.brokers.sqlite.settings import SQLiteSettings
from forebay.testing.broker_contract import BrokerContract, BrokerHarness
from forebay.testing.broker_contract.harness import collect, ids, message, publish

SETTINGS = SQLiteSettings(ballast_bytes=0)


class SQLiteHarness(BrokerHarness):
    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self) -> AbstractAsyncContextManager[Broker]:
        return SQLiteBroker.open(self.path, SETTINGS)

    def open_small(self, max_bytes: int) -> AbstractAsyncContextManager[Broker]:
        return SQLiteBroker.open(self.path, SETTINGS.model_copy(update={"max_bytes": max_bytes}))

    @asynccontextmanager
    async def stalled(self) -> AsyncIterator[None]:
        """Another process that was stopped while it had the turn to write looks just so."""
        turn = Turn(self.path.with_name(self.path.name + ".run"))
        try:
            await asyncio.to_thread(turn.__enter__)
            yield
        finally:
            turn.__exit__(None, None, None)
            turn.close()


class TestSQLite(BrokerContract):
    @pytest.fixture
    def harness(self, tmp_path: Path) -> BrokerHarness:
        return SQLiteHarness(tmp_path / "queue.db")

    async def test_one_subscription_gets_everything_in_order(
        self, harness: BrokerHarness, broker: Broker, queue: str
    ) -> None:
        sent = [message(str(i).encode(), key=f"k{i % 3}") for i in range(60)]
        for start in range(0, 60, 7):
            await publish(broker, queue, sent[start : start + 7])
        async with broker.subscribe(queue, prefetch=60) as subscription:
            assert ids(await collect(subscription, 60, harness.patience)) == ids(sent)

    async def test_messages_behind_many_of_a_key_held_elsewhere_are_not_held_up(
        self, harness: BrokerHarness, broker: Broker, queue: str
    ) -> None:
        await publish(broker, queue, [message(key="busy") for _ in range(1_000)])
        async with broker.subscribe(queue, prefetch=1) as one:
            [held] = await one.receive(1, harness.patience)
            free = message(key="free")
            await publish(broker, queue, [free])
            async with harness.open() as other, other.subscribe(queue, prefetch=10) as two:
                assert ids(await two.receive(1, harness.patience)) == [free.id]
                assert await two.receive(1, 0.1) == []
                await one.settle([Ack(held)])
                assert (await two.receive(1, harness.patience))[0].message.key == "busy"
