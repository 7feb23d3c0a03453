"""RabbitMQ keeps the contract on three nodes; and what the loss of a node does."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from pydantic import SecretStr

from forebay.brokers.api import Ack
from forebay.brokers.rabbitmq.broker import RabbitMQBroker
from forebay.brokers.rabbitmq.settings import RabbitMQSettings
from forebay.errors import BrokerUnavailable, SettingsError
from forebay.testing.broker_contract import BrokerContract, BrokerHarness
from forebay.testing.broker_contract.harness import (
    fresh_name,
    ids,
    message,
    messages,
    publish,
    until_depth,
)
from gateway.app import Gateway, create_app
from gateway.queues import QueueRegistry
from gateway.settings import GatewaySettings
from tests.contract.rabbitmq import SETTINGS, RabbitMQHarness, proxies_of, running, with_management
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
            return RabbitMQHarness(request.getfixturevalue("own_cluster"), proxies, managed=True, ours=True)
        return RabbitMQHarness(request.getfixturevalue("cluster"), proxies, managed=True)


async def until_true(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.1)


# ---- how durable a confirmed message is


async def test_with_three_members_a_message_is_replicated_and_without_word_of_them_synced(
    cluster: RabbitMQCluster,
) -> None:
    told = {}
    for settings in (with_management(cluster), SETTINGS):
        async with RabbitMQBroker.open(cluster.url, settings) as broker:
            queue = fresh_name()
            await broker.declare(queue)
            later = message(not_before=datetime.now(UTC) + timedelta(seconds=60))
            results = await broker.publish(queue, [message(), later], timeout=10)
            told[broker.capabilities.durability] = [r.durability for r in results]
    assert told == {"replicated": ["replicated"] * 2, "synced": ["synced"] * 2}


async def test_a_queue_with_fewer_members_is_not_called_replicated(cluster: RabbitMQCluster) -> None:
    settings = with_management(cluster).model_copy(update={"replicas": 2, "prefix": "two."})
    async with RabbitMQBroker.open(cluster.url, settings) as made_small:
        queue = fresh_name()
        await made_small.declare(queue)
        assert made_small.capabilities.durability == "synced"
        [result] = await made_small.publish(queue, [message()], timeout=10)
        assert result.durability == "synced"
        found = {f.check: f for f in await made_small.examine([queue])}
    assert found[f"queue two.{queue}"].verdict == "warn"
    assert "on 2 nodes, of 3" in found[f"queue two.{queue}"].text


async def test_a_publisher_that_did_not_declare_learns_it_on_its_own(cluster: RabbitMQCluster) -> None:
    settings = with_management(cluster)
    queue = fresh_name()
    async with RabbitMQBroker.open(cluster.url, settings) as broker:
        await broker.declare(queue)
    async with RabbitMQBroker.open(cluster.url, settings) as broker:

        async def replicated() -> bool:
            [result] = await broker.publish(queue, [message()], timeout=5)
            return result.durability == "replicated"

        await until_true(replicated)


async def test_while_the_management_api_is_silent_the_last_answer_stands(cluster: RabbitMQCluster) -> None:
    with Proxy(cluster.nodes[0].management_port) as proxy:
        url = SecretStr(f"http://127.0.0.1:{proxy.port}")
        settings = SETTINGS.model_copy(update={"management_url": url})
        async with RabbitMQBroker.open(cluster.url, settings) as broker:
            known, unknown = fresh_name(), fresh_name()
            await broker.declare(known)
            with proxy.stalled():
                proxy.cut()
                await broker.declare(unknown)
                began = time.monotonic()
                results = [(await broker.publish(q, [message()], timeout=5))[0] for q in (known, unknown)]
                assert time.monotonic() - began < 1
    assert [r.durability for r in results] == ["replicated", "synced"]


async def test_a_gateway_that_wants_copies_starts_when_it_is_told_of_them_and_else_says_what_is_missing(
    cluster: RabbitMQCluster,
) -> None:
    gateway = GatewaySettings(min_durability="replicated")
    queue = fresh_name()

    def app(settings: RabbitMQSettings) -> Gateway:
        broker = partial(RabbitMQBroker.open, cluster.url, settings)
        return create_app(broker=broker, settings=gateway, queues=QueueRegistry([queue]))

    started = app(with_management(cluster))
    async with started.router.lifespan_context(started):
        pass
    refused = app(SETTINGS)
    with pytest.raises(SettingsError, match=r"reaches only 'synced'.*AMQP does not tell.*management_url"):
        async with refused.router.lifespan_context(refused):
            pass


async def test_what_is_in_hand_and_how_large_it_is_comes_from_the_management_api(
    cluster: RabbitMQCluster,
) -> None:
    # With delay queues of its own, which nobody else fills.
    settings = with_management(cluster).model_copy(update={"prefix": "counted."})
    async with RabbitMQBroker.open(cluster.url, settings) as broker:
        queue = fresh_name()
        await broker.declare(queue)
        await publish(broker, queue, [message(b"12345"), message(b"123")])
        async with broker.subscribe(queue, prefetch=1):
            depth = await until_depth(broker, queue, 20, lambda d: (d.in_hand, d.bytes) == (1, 8))
            assert (depth.waiting, depth.scheduled) == (1, 0)


async def test_a_healthy_cluster_has_nothing_but_its_missing_name_and_low_disk_limit_against_it(
    cluster: RabbitMQCluster,
) -> None:
    async with RabbitMQBroker.open(cluster.url, with_management(cluster)) as broker:
        queue = fresh_name()
        await broker.declare(queue)
        found = await broker.examine([queue])
    assert {f.check for f in found if f.verdict != "ok"} == {"cluster name", "disk limit"}
    assert "replicated: a quorum queue on 3 nodes" in [f.text for f in found]


async def test_a_lost_node_is_found(own_cluster: RabbitMQCluster) -> None:
    async with RabbitMQBroker.open(own_cluster.url, with_management(own_cluster)) as broker:
        queue = fresh_name()
        await broker.declare(queue)
        lost = own_cluster.nodes[2]
        await asyncio.to_thread(lost.kill)

        async def warned() -> bool:
            found = {f.check: f for f in await broker.examine([queue])}
            return f"{lost.server_name} is away" in found[f"queue {SETTINGS.prefix}{queue}"].text

        await until_true(warned)


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
            batch = messages(5)
            confirmed = set()
            with contextlib.suppress(BrokerUnavailable):
                results = await broker.publish(queue, batch, timeout=5)
                confirmed = {m.id for m, r in zip(batch, results, strict=True) if r.ok}
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


async def test_a_node_that_hangs_is_left_before_its_heartbeat_is_missed(own_cluster: RabbitMQCluster) -> None:
    """Of queues that it does not lead; the others wait for the cluster to notice it."""
    load = Load(own_cluster)
    async with load.running(leader_is_ours=False):
        load.node.pause()
        await load.confirms()
        load.node.resume()
    assert load.gap <= 8
    assert load.confirmed <= load.arrived


async def test_without_a_majority_nothing_is_confirmed_and_when_it_heals_nothing_is_lost(
    own_cluster: RabbitMQCluster,
) -> None:
    load = Load(own_cluster)
    async with load.running(leader_is_ours=True):
        await load.kill(*[n for n in own_cluster.nodes if n is not load.node])
        # A survivor that does not pause at once lets each publish wait for its deadline.
        await until(lambda: load.refused >= 2, 30)
        before = len(load.confirmed)
        await until(lambda: load.refused >= 4, 30)
        assert len(load.confirmed) == before
        await asyncio.to_thread(own_cluster.start)
        await load.confirms()
    assert load.confirmed <= load.arrived
