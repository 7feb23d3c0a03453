"""Kafka keeps the contract."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from forebay.brokers.api import Broker
from forebay.brokers.kafka.broker import KafkaBroker
from forebay.brokers.kafka.settings import KafkaSettings
from forebay.testing.broker_contract import BrokerContract, BrokerHarness
from tests.needs import missing_server
from tests.servers.kafka import Kafka, KafkaNotInstalled

# Small figures, so that a test need not wait for what a cluster in earnest takes its time for.
SETTINGS = KafkaSettings(
    partitions=3, retry_delays=(0.25, 5.0), heartbeat=0.1, session_timeout=6.0, idle_leave=0.3, handover=5.0
)


@pytest.fixture(scope="session")
def kafka() -> Iterator[Kafka]:
    """A Kafka of one node, shared by the session; a test that kills it starts it again."""
    try:
        server = Kafka()
    except KafkaNotInstalled as missing:
        missing_server(str(missing))
    with server:
        yield server


class KafkaHarness(BrokerHarness):
    def __init__(self, server: Kafka) -> None:
        self.server = server

    def open(self) -> AbstractAsyncContextManager[Broker]:
        return KafkaBroker.open(self.server.url, SETTINGS)

    @asynccontextmanager
    async def stalled(self) -> AsyncIterator[None]:
        self.server.pause()
        try:
            yield
        finally:
            self.server.resume()

    async def restart(self) -> None:
        self.server.kill()
        self.server.start()


@pytest.mark.xdist_group("kafka")
class TestKafka(BrokerContract):
    @pytest.fixture
    def harness(self, kafka: Kafka) -> BrokerHarness:
        return KafkaHarness(kafka)
