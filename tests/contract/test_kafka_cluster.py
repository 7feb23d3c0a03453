"""Kafka keeps the contract on three nodes; and what the loss of a node does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest

from forebay.brokers.api import Ack
from forebay.brokers.kafka.broker import KafkaBroker
from forebay.brokers.kafka.records import partition_of
from forebay.brokers.kafka.topics import group_of
from forebay.errors import BrokerUnavailable
from forebay.testing.broker_contract import BrokerContract, BrokerHarness
from forebay.testing.broker_contract.harness import fresh_name, ids, message
from tests.contract.kafka import SETTINGS, KafkaHarness, in_use, running
from tests.servers.kafka import KafkaCluster, KafkaNode
from tests.waiting import until


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    with running(tmp_path_factory, 3) as servers:
        yield servers


@pytest.fixture
def cluster(servers: KafkaCluster) -> Iterator[KafkaCluster]:
    """Nodes that this test alone may kill; they run again afterwards."""
    with servers.alone():
        yield servers


class TestKafkaCluster(BrokerContract):
    @pytest.fixture
    def harness(self, servers: KafkaCluster, request: pytest.FixtureRequest) -> Iterator[BrokerHarness]:
        with in_use(servers, request) as cluster:
            yield KafkaHarness(cluster)


KEY = "k"
LED = partition_of(KEY.encode(), SETTINGS.partitions)
"""The partition that all messages of the load go to."""


STALLED = 20.0
"""
Seconds without a confirmation that are no failover any more. How long one takes is measured where
nothing else runs: 5 s is the bound of `make soak ONLY=faults-kafka3`.
"""


class Load:
    """
    Publishes and consumes all the time, as a gateway and a consumer would.

    Keeps what was confirmed and what arrived, and the longest time without a confirmation.
    """

    def __init__(self, cluster: KafkaCluster) -> None:
        self._cluster = cluster
        self._broker: KafkaBroker | None = None
        self._stopping = False
        self._last = time.monotonic()
        self.queue = fresh_name()
        self.confirmed: set[str] = set()
        self.arrived: set[str] = set()
        self.refused = 0
        self.gap = 0.0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with KafkaBroker.open(self._cluster.url, SETTINGS) as self._broker:
            await self._broker.declare(self.queue)
            tasks = [asyncio.create_task(self._publish()), asyncio.create_task(self._consume())]
            try:
                await self.confirms()
                await until(lambda: len(self.arrived) > 50, 30)
                self.gap = 0.0
                yield
            finally:
                self._stopping = True
                await asyncio.gather(*tasks)

    async def confirms(self, more: int = 100) -> None:
        """Until so many more are confirmed."""
        wanted = len(self.confirmed) + more
        await until(lambda: len(self.confirmed) >= wanted, 60)

    async def _publish(self) -> None:
        assert self._broker is not None
        while not self._stopping:
            batch = [message(b"{}", key=KEY) for _ in range(5)]
            try:
                results = await self._broker.publish(self.queue, batch, timeout=5)
            except BrokerUnavailable:
                self.refused += len(batch)
            else:
                if any(r.ok for r in results):
                    now = time.monotonic()
                    self.gap, self._last = max(self.gap, now - self._last), now
                self.confirmed |= {m.id for m, r in zip(batch, results, strict=True) if r.ok}
                self.refused += len([r for r in results if not r.ok])
            await asyncio.sleep(0.01)

    async def _consume(self) -> None:
        """Until all that was confirmed has arrived; late ones have 30 seconds."""
        assert self._broker is not None
        end = float("inf")
        async with self._broker.subscribe(self.queue, prefetch=100) as subscription:
            while time.monotonic() < end:
                if self._stopping:
                    if self.confirmed <= self.arrived:
                        return
                    end = min(end, time.monotonic() + 30)
                got = await subscription.receive(100, 0.2)
                await subscription.settle([Ack(d) for d in got])
                self.arrived.update(ids(got))

    def leader(self) -> KafkaNode:
        return self._cluster.leader_of(self.queue, LED)

    def coordinator(self) -> KafkaNode:
        return self._cluster.coordinator_of(group_of(self.queue))

    def follower(self) -> KafkaNode:
        """Neither the leader nor the controller."""
        others = {self.leader().number, self._cluster.controller().number}
        return next(n for n in self._cluster.nodes if n.number not in others)


WHO: dict[str, Callable[[Load, KafkaCluster], KafkaNode]] = {
    "leader": lambda load, cluster: load.leader(),
    "follower": lambda load, cluster: load.follower(),
    "controller": lambda load, cluster: cluster.controller(),
    "coordinator": lambda load, cluster: load.coordinator(),
}


@pytest.mark.parametrize("who", WHO)
async def test_a_lost_node_stops_confirmations_for_a_while_only_and_loses_nothing(
    cluster: KafkaCluster, who: str
) -> None:
    load = Load(cluster)
    async with load.running():
        node = await asyncio.to_thread(WHO[who], load, cluster)
        await asyncio.to_thread(node.kill)
        await load.confirms()
        # The consumer goes on too, long before the node is back.
        seen = len(load.arrived)
        await until(lambda: len(load.arrived) > seen + 50, 30)
    assert load.confirmed <= load.arrived
    assert load.gap <= STALLED


async def test_below_the_least_copies_nothing_is_confirmed_and_when_it_heals_nothing_is_lost(
    cluster: KafkaCluster,
) -> None:
    load = Load(cluster)
    async with load.running():
        leader = await asyncio.to_thread(load.leader)
        for node in cluster.nodes:
            if node is not leader:
                await asyncio.to_thread(node.kill)
        # What the others had already may still be confirmed; the first refusal is behind that.
        await until(lambda: load.refused >= 5, 30)
        before = len(load.confirmed)
        await until(lambda: load.refused >= 10, 30)
        assert len(load.confirmed) == before
        await asyncio.to_thread(cluster.start)
        await load.confirms()
    assert load.confirmed <= load.arrived
