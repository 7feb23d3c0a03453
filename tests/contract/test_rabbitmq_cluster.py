"""RabbitMQ keeps the contract on three nodes; and what the loss of a node does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from forebay.brokers.api import Ack
from forebay.brokers.rabbitmq.broker import RabbitMQBroker
from forebay.errors import BrokerUnavailable
from forebay.testing.broker_contract import BrokerContract, BrokerHarness
from forebay.testing.broker_contract.harness import fresh_name, ids, messages
from tests.contract.rabbitmq import SETTINGS, RabbitMQHarness, proxies_of, running
from tests.servers.proxy import Proxy
from tests.servers.rabbitmq import RabbitMQCluster, RabbitMQNode
from tests.waiting import until


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQCluster]:
    with running(tmp_path_factory, 3) as servers:
        yield servers


@pytest.fixture
def cluster(servers: RabbitMQCluster) -> Iterator[RabbitMQCluster]:
    """All nodes run, and go on running."""
    with servers.shared_with_others():
        yield servers


@pytest.fixture
def own_cluster(servers: RabbitMQCluster) -> Iterator[RabbitMQCluster]:
    """Nodes that this test alone may kill; they run again afterwards."""
    with servers.alone():
        yield servers


@pytest.fixture(scope="session")
def proxies(servers: RabbitMQCluster) -> Iterator[list[Proxy]]:
    with proxies_of(servers) as proxies:
        yield proxies


class TestRabbitMQCluster(BrokerContract):
    @pytest.fixture
    def harness(self, request: pytest.FixtureRequest, proxies: list[Proxy]) -> BrokerHarness:
        if "restart" in request.node.name:
            return RabbitMQHarness(request.getfixturevalue("own_cluster"), proxies, ours=True)
        return RabbitMQHarness(request.getfixturevalue("cluster"), proxies)


# ---- nodes are lost


class Load:
    """
    Publishes and consumes all the time, as a gateway and a consumer would.

    Keeps what was confirmed and what arrived, and the longest time without a confirmation.
    """

    def __init__(self, cluster: RabbitMQCluster) -> None:
        self._cluster = cluster
        self._stopping = False
        self._last = time.monotonic()
        self.confirmed: set[str] = set()
        self.arrived: set[str] = set()
        self.refused = 0
        """Publishes in a row of which nothing was confirmed."""
        self.gap = 0.0

    @asynccontextmanager
    async def running(self, *, leader_is_ours: bool) -> AsyncIterator[None]:
        """
        While inside; at the end, until all that was confirmed has arrived.

        `leader_is_ours`: the queue is led by the node that is published to, or else by another.
        """
        async with RabbitMQBroker.open(self._cluster.url, SETTINGS) as broker:
            self.node = self._published_to(broker)
            while True:
                queue = fresh_name()
                await broker.declare(queue)
                self.leader = await asyncio.to_thread(self._cluster.leader_of, SETTINGS.prefix + queue)
                if (self.leader is self.node) == leader_is_ours:
                    break
            tasks = [
                asyncio.create_task(t) for t in (self._publish(broker, queue), self._consume(broker, queue))
            ]
            try:
                await self.confirms()
                self.gap = 0.0
                yield
            finally:
                self._stopping = True
                await asyncio.gather(*tasks)

    def _published_to(self, broker: RabbitMQBroker) -> RabbitMQNode:
        connection = broker._publisher.link.connection
        assert connection is not None
        [node] = [n for n in self._cluster.nodes if n.port == connection.params.port]
        return node

    async def confirms(self) -> None:
        """Until a hundred more are confirmed."""
        wanted = len(self.confirmed) + 100
        await until(lambda: len(self.confirmed) >= wanted, 60)

    async def _publish(self, broker: RabbitMQBroker, queue: str) -> None:
        while not self._stopping:
            try:
                results = await broker.publish(queue, messages(5), timeout=5)
            except BrokerUnavailable:
                results = []
            confirmed = {r.message_id for r in results if r.ok}
            if confirmed:
                now = time.monotonic()
                self.gap, self._last = max(self.gap, now - self._last), now
                self.confirmed |= confirmed
            self.refused = 0 if confirmed else self.refused + 1
            await asyncio.sleep(0.01)

    async def _consume(self, broker: RabbitMQBroker, queue: str) -> None:
        end = float("inf")
        async with broker.subscribe(queue, prefetch=100) as subscription:
            while time.monotonic() < end:
                if self._stopping:
                    if self.confirmed <= self.arrived:
                        return
                    end = min(end, time.monotonic() + 30)
                try:
                    got = await subscription.receive(100, 0.2)
                    await subscription.settle([Ack(d) for d in got])
                except BrokerUnavailable:
                    continue
                self.arrived.update(ids(got))

    async def kill(self, *nodes: RabbitMQNode) -> None:
        for node in nodes:
            await asyncio.to_thread(node.kill)


@pytest.mark.parametrize("lost", ["the leader", "leader and connection", "a follower"])
async def test_a_lost_node_stops_confirmations_for_two_seconds_at_most_and_loses_nothing(
    own_cluster: RabbitMQCluster, lost: str
) -> None:
    load = Load(own_cluster)
    async with load.running(leader_is_ours=lost != "the leader"):
        if lost == "a follower":
            await load.kill(next(n for n in own_cluster.nodes if n is not load.leader))
        else:
            await load.kill(load.leader)
        await load.confirms()
    assert load.gap <= 2
    assert load.confirmed <= load.arrived


async def test_without_a_majority_nothing_is_confirmed_and_when_it_heals_nothing_is_lost(
    own_cluster: RabbitMQCluster,
) -> None:
    load = Load(own_cluster)
    async with load.running(leader_is_ours=True):
        await load.kill(*[n for n in own_cluster.nodes if n is not load.node])
        await until(lambda: load.refused > 20, 30)
        before = len(load.confirmed)
        await until(lambda: load.refused > 40, 30)
        assert len(load.confirmed) == before
        await asyncio.to_thread(own_cluster.start)
        await load.confirms()
    assert load.confirmed <= load.arrived
