"""What the tests of RabbitMQ's driver share, on one node and on three."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from urllib.parse import urlsplit

import pytest
from pydantic import SecretStr

from forebay.brokers.api import Broker
from forebay.brokers.rabbitmq.broker import RabbitMQBroker
from forebay.brokers.rabbitmq.link import Channel, Connection, Link
from forebay.brokers.rabbitmq.settings import RabbitMQSettings
from forebay.brokers.rabbitmq.url import read_url
from forebay.errors import BrokerUnavailable
from forebay.testing.broker_contract import BrokerHarness
from forebay.testing.broker_contract.harness import message
from tests.needs import missing_server
from tests.servers.proxy import Proxy
from tests.servers.rabbitmq import RabbitMQCluster, RabbitMQNotInstalled, find_scripts, shared

EXISTING = "FOREBAY_TEST_RABBITMQ_URL"
"""Names a server that is there already, of another version, say: amqp://user:password@127.0.0.1:5672/."""

SETTINGS = RabbitMQSettings(prefix="contract.", delays=(0.2, 1.0, 5.0), max_bytes=100_000_000)


class RabbitMQHarness(BrokerHarness):
    """A proxy before each node; with `managed`, the driver asks the management API too."""

    look = 0.02
    lag = 1.0

    def __init__(
        self,
        cluster: RabbitMQCluster,
        proxies: Sequence[Proxy],
        *,
        managed: bool = False,
        ours: bool = False,
    ) -> None:
        self.cluster = cluster
        self.proxies = proxies
        self.settings = SETTINGS
        if managed:
            self.settings = with_management(cluster)
            self.lag = 15.0
        self._ours = ours
        hosts = ",".join(f"127.0.0.1:{proxy.port}" for proxy in proxies)
        self.url = f"amqp://{cluster.user}:{cluster.password}@{hosts}/"

    def open(self) -> AbstractAsyncContextManager[Broker]:
        return RabbitMQBroker.open(self.url, self.settings)

    def open_small(self, max_bytes: int) -> AbstractAsyncContextManager[Broker]:
        small = self.settings.model_copy(update={"max_bytes": max_bytes, "prefix": "small."})
        return RabbitMQBroker.open(self.url, small)

    @asynccontextmanager
    async def stalled(self) -> AsyncIterator[None]:
        with contextlib.ExitStack() as stack:
            for proxy in self.proxies:
                stack.enter_context(proxy.stalled())
            yield

    async def write_foreign(self, queue: str, bodies: Sequence[bytes]) -> None:
        async with another_program(self.url) as channel:
            for body in bodies:
                channel.raw.basic_publish("", self.settings.prefix + queue, body)
            # Answered after what was published before it, on this channel.
            await channel.call("queue_declare", self.settings.prefix + queue, passive=True, timeout=10)

    def cut(self) -> None:
        """End all connections."""
        for proxy in self.proxies:
            proxy.cut()

    async def restart(self) -> None:
        assert self._ours, "this test shares its servers with others"
        node = self.cluster.nodes[0]
        await asyncio.to_thread(node.kill)
        await asyncio.to_thread(node.start)


@asynccontextmanager
async def another_program(url: str) -> AsyncIterator[Channel]:
    """A channel of somebody who knows AMQP and not us."""

    async def nothing(_: Connection) -> None: ...

    link = Link("test", read_url(url, SETTINGS), on_up=nothing, on_down=lambda _: None)
    try:
        yield await Channel.open(await link.up(10), 10)
    finally:
        await link.close(3)


def with_management(cluster: RabbitMQCluster) -> RabbitMQSettings:
    return SETTINGS.model_copy(update={"management_url": SecretStr(cluster.management_url)})


@contextlib.contextmanager
def running(factory: pytest.TempPathFactory, nodes: int) -> Iterator[RabbitMQCluster]:
    """One cluster of that size for all test workers of this run; one node may be an existing one."""
    if nodes == 1 and EXISTING in os.environ:
        yield existing(os.environ[EXISTING])
        return
    try:
        find_scripts()
    except RabbitMQNotInstalled as missing:
        missing_server(str(missing))
    if "PYTEST_XDIST_WORKER" in os.environ:
        yield shared(factory.getbasetemp().parent, os.getppid(), nodes)
    else:
        with RabbitMQCluster(nodes) as cluster:
            yield cluster


def existing(url: str) -> RabbitMQCluster:
    """A server that others started, to be used and not to be killed."""
    parts = urlsplit(url)
    ports = {"amqp": parts.port, "distribution": 0, "management": 0}
    cluster = RabbitMQCluster.attach(
        {"folder": os.devnull, "password": parts.password, "epmd": 0, "nodes": [ports]}
    )
    cluster.user = parts.username or cluster.user
    return cluster


@contextlib.contextmanager
def proxies_of(cluster: RabbitMQCluster) -> Iterator[list[Proxy]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Proxy(node.port)) for node in cluster.nodes]


async def published(broker: Broker, queue: str, within: float = 10.0) -> None:
    """Until a publish is confirmed again."""
    async with asyncio.timeout(within):
        while True:
            try:
                [result] = await broker.publish(queue, [message(b"again")], timeout=1)
                if result.ok:
                    return
            except BrokerUnavailable:
                pass
            await asyncio.sleep(0.05)
