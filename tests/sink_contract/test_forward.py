"""The broker sink keeps the contract, on the embedded queue and on RabbitMQ."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from consumers.settings import QueueSettings
from consumers.sinks.factory import make_sink
from consumers.sinks.forward import Brokers
from consumers.sinks.settings import ForwardSettings
from forebay.brokers.api import Broker
from forebay.brokers.sqlite.broker import SQLiteBroker
from forebay.brokers.sqlite.settings import SQLiteSettings
from forebay.errors import BrokerUnavailable
from forebay.sinks import Sink
from forebay.storage.database import Database
from forebay.storage.schema import migrate
from forebay.testing.broker_contract.harness import fresh_name
from forebay.testing.sink_contract import SinkContract, SinkHarness
from tests.contract.rabbitmq import RabbitMQHarness, proxies_of, running
from tests.contract.test_sqlite import SQLiteHarness
from tests.servers.rabbitmq import RabbitMQCluster
from tests.sink_contract.destinations import PATIENT

LARGEST = 600_000


class ForwardHarness(SinkHarness):
    """What counts is what the next consumer's once-only record lets through: the first of each id."""

    look = 0.2

    def __init__(self, database_url: str) -> None:
        self.database_url = database_url
        self.target = fresh_name()
        self.settings = QueueSettings(sink="broker", forward=ForwardSettings(queue=self.target, timeout=1.0))

    def broker(self) -> AbstractAsyncContextManager[Broker]:
        raise NotImplementedError

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Sink]:
        database = Database(self.database_url, PATIENT)
        brokers = Brokers(url="current:", current=self.broker, other=lambda _: self.broker)
        sink = make_sink("contract", self.settings, database, brokers)
        try:
            yield sink
        finally:
            await sink.close()
            database.dispose()

    async def stored(self, ids: Sequence[str]) -> list[tuple[str, bytes]]:
        found: dict[str, bytes] = {}
        async with self.broker() as broker:
            await broker.declare(self.target)
            async with broker.subscribe(self.target, prefetch=1_000) as subscription:
                while batch := await subscription.receive(1_000, self.look):
                    for d in batch:
                        found.setdefault(d.message.id, d.message.body)
        return [(i, found[i]) for i in ids if i in found]


class EmbeddedHarness(ForwardHarness):
    poison = b"x" * (LARGEST + 1)

    def __init__(self, folder: Path, database_url: str) -> None:
        super().__init__(database_url)
        self.file = folder / "queue.db"
        self.limits = SQLiteSettings(ballast_bytes=0, max_body_bytes=LARGEST)

    def broker(self) -> AbstractAsyncContextManager[Broker]:
        return SQLiteBroker.open(self.file, self.limits)

    def outage(self) -> AbstractAsyncContextManager[None]:
        return SQLiteHarness(self.file).stalled()


class RabbitMQForwardHarness(ForwardHarness):
    look = 1.0

    def __init__(self, rabbitmq: RabbitMQHarness, database_url: str) -> None:
        super().__init__(database_url)
        self.rabbitmq = rabbitmq
        self.opened: list[Broker] = []

    @asynccontextmanager
    async def broker(self) -> AsyncIterator[Broker]:
        async with self.rabbitmq.open() as broker:
            self.opened.append(broker)
            yield broker
            self.opened.remove(broker)

    @asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        with self.rabbitmq.proxies[0].away():
            yield
        for broker in self.opened:
            await connected(broker)


async def connected(broker: Broker) -> None:
    """Until it has found its way back."""
    async with asyncio.timeout(10):
        while True:
            try:
                return await broker.ping()
            except BrokerUnavailable:
                await asyncio.sleep(0.05)


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path}/forebay.db"
    database = Database(url, PATIENT)
    migrate(database)
    database.dispose()
    return url


class TestEmbedded(SinkContract):
    @pytest.fixture
    def harness(self, tmp_path: Path, database_url: str) -> SinkHarness:
        return EmbeddedHarness(tmp_path, database_url)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQCluster]:
    with running(tmp_path_factory, 1) as server:
        yield server


class TestRabbitMQ(SinkContract):
    @pytest.fixture
    def harness(self, server: RabbitMQCluster, database_url: str) -> Iterator[SinkHarness]:
        with proxies_of(server) as proxies:
            yield RabbitMQForwardHarness(RabbitMQHarness(server, proxies), database_url)
