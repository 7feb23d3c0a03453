"""What the tests of Kafka's driver share, on one node and on three."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
from aiokafka import AIOKafkaProducer

from forebay.brokers.api import Broker
from forebay.brokers.kafka.broker import KafkaBroker
from forebay.brokers.kafka.settings import KafkaSettings
from forebay.testing.broker_contract import BrokerHarness
from forebay.testing.broker_contract.outages import OutageContract
from tests.needs import missing_server
from tests.servers.kafka import KafkaCluster, KafkaNotInstalled, shared

# Small figures, so that a test need not wait for what a cluster in earnest takes its time for.
SETTINGS = KafkaSettings(
    partitions=3, retry_delays=(1.0, 5.0), heartbeat=0.1, session_timeout=6.0, idle_leave=0.3, handover=5.0
)


class KafkaHarness(BrokerHarness):
    look = 0.25
    histories = 5

    def __init__(self, cluster: KafkaCluster) -> None:
        self.cluster = cluster

    def open(self) -> AbstractAsyncContextManager[Broker]:
        return KafkaBroker.open(self.cluster.url, SETTINGS)

    @asynccontextmanager
    async def stalled(self) -> AsyncIterator[None]:
        for node in self.cluster.nodes:
            node.pause()
        try:
            yield
        finally:
            for node in self.cluster.nodes:
                node.resume()

    async def write_foreign(self, queue: str, bodies: Sequence[bytes]) -> None:
        async with AIOKafkaProducer(bootstrap_servers=self.cluster.nodes[0].address) as producer:
            for written in [await producer.send(queue, body) for body in bodies]:
                await written

    async def restart(self) -> None:
        node = self.cluster.nodes[0]
        await asyncio.to_thread(node.kill)
        await asyncio.to_thread(node.start)


@contextlib.contextmanager
def running(factory: pytest.TempPathFactory, nodes: int) -> Iterator[KafkaCluster]:
    """One cluster of that size for all test workers of this run."""
    try:
        if "PYTEST_XDIST_WORKER" in os.environ:
            yield shared(factory.getbasetemp().parent, os.getppid(), nodes)
        else:
            with KafkaCluster(nodes) as cluster:
                yield cluster
    except KafkaNotInstalled as missing:
        missing_server(str(missing))


@contextlib.contextmanager
def in_use(servers: KafkaCluster, request: pytest.FixtureRequest) -> Iterator[KafkaCluster]:
    """The cluster for one test of the suite; for itself alone, where nodes are stopped."""
    stops = request.function.__name__ in vars(OutageContract)
    with servers.alone() if stops else servers.shared_with_others():
        yield servers
