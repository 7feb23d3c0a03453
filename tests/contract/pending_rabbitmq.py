"""RabbitMQ keeps the contract, on one node."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from urllib.parse import urlsplit

import pytest

from forebay.brokers.api import Broker
from forebay.brokers.rabbitmq.broker import RabbitMQBroker
from forebay.brokers.rabbitmq.settings import RabbitMQSettings
from forebay.testing.broker_contract import BrokerContract, BrokerHarness
from tests.needs import missing_server
from tests.servers.proxy import Proxy
from tests.servers.rabbitmq import RabbitMQ, RabbitMQNotInstalled, find_scripts, shared

SETTINGS = RabbitMQSettings(prefix="contract.", delays=(0.2, 1.0, 5.0), max_bytes=100_000_000)


class RabbitMQHarness(BrokerHarness):
    def __init__(self, url: str, proxy: Proxy, server: RabbitMQ | None = None) -> None:
        parts = urlsplit(url)
        self.url = parts._replace(netloc=f"{parts.username}:{parts.password}@127.0.0.1:{proxy.port}").geturl()
        self.proxy = proxy
        self.server = server

    def open(self) -> AbstractAsyncContextManager[Broker]:
        return RabbitMQBroker.open(self.url, SETTINGS)

    def open_small(self, max_bytes: int) -> AbstractAsyncContextManager[Broker]:
        small = SETTINGS.model_copy(update={"max_bytes": max_bytes, "prefix": "small."})
        return RabbitMQBroker.open(self.url, small)

    @asynccontextmanager
    async def stalled(self) -> AsyncIterator[None]:
        with self.proxy.stalled():
            yield

    async def restart(self) -> None:
        assert self.server is not None, "this test shares its server with others"
        await asyncio.to_thread(self.server.kill)
        await asyncio.to_thread(self.server.start)


@pytest.fixture(scope="session")
def rabbitmq_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One server for all test workers of this run."""
    try:
        find_scripts()
    except RabbitMQNotInstalled as missing:
        missing_server(str(missing))
    if "PYTEST_XDIST_WORKER" in os.environ:
        yield shared(tmp_path_factory.getbasetemp().parent, os.getppid())
    else:
        with RabbitMQ() as server:
            yield server.url


@pytest.fixture(scope="session")
def proxy(rabbitmq_url: str) -> Iterator[Proxy]:
    with Proxy(urlsplit(rabbitmq_url).port or 0) as proxy:
        yield proxy


@pytest.fixture
def own_server(rabbitmq_url: str) -> Iterator[RabbitMQHarness]:
    """A server that this test alone may kill."""
    with RabbitMQ() as server, Proxy(server.port) as proxy:
        yield RabbitMQHarness(server.url, proxy, server)


class TestRabbitMQ(BrokerContract):
    @pytest.fixture
    def harness(self, request: pytest.FixtureRequest) -> BrokerHarness:
        harness: BrokerHarness
        if "restart" in request.node.name:
            harness = request.getfixturevalue("own_server")
        else:
            url, proxy = request.getfixturevalue("rabbitmq_url"), request.getfixturevalue("proxy")
            harness = RabbitMQHarness(url, proxy)
        return harness
