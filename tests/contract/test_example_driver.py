"""The example of a driver outside the package keeps the contract, and its entry point is found."""

from __future__ import annotations

import importlib
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from pydantic import SecretStr

from forebay.brokers import factory
from forebay.brokers.api import Broker
from forebay.brokers.settings import BrokerSettings
from forebay.testing.broker_contract import BrokerContract, BrokerHarness
from tests.needs import missing_server
from tests.servers.postgres import Postgres, PostgresNotInstalled
from tests.servers.proxy import Proxy

EXAMPLE = Path(__file__).parents[2] / "examples" / "pgqueue"


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """One that these tests may crash."""
    try:
        server = Postgres(durable=False)
    except PostgresNotInstalled as missing:
        missing_server(str(missing))
    with server:
        yield server


@pytest.fixture(scope="module")
def proxy(server: Postgres) -> Iterator[Proxy]:
    with Proxy(server.port) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def pgqueue() -> Iterator[Any]:
    sys.path.insert(0, str(EXAMPLE))
    yield importlib.import_module("pgqueue")
    sys.path.remove(str(EXAMPLE))


class PgQueueHarness(BrokerHarness):
    def __init__(self, driver: Any, server: Postgres, proxy: Proxy) -> None:
        self.driver, self.server, self.proxy = driver, server, proxy
        parts = urlsplit(server.create_database())
        host = f"{parts.username}:{parts.password}@127.0.0.1:{proxy.port}"
        self.url = parts._replace(scheme="pgqueue", netloc=host).geturl()

    def open(self) -> AbstractAsyncContextManager[Broker]:
        opened: AbstractAsyncContextManager[Broker] = self.driver.open_broker(self.url, BrokerSettings())
        return opened

    @asynccontextmanager
    async def stalled(self) -> AsyncIterator[None]:
        with self.proxy.stalled():
            yield

    async def restart(self) -> None:
        self.server.stop("immediate")
        self.server.start()


@pytest.mark.external
class TestExampleDriver(BrokerContract):
    @pytest.fixture
    def harness(self, pgqueue: Any, server: Postgres, proxy: Proxy) -> BrokerHarness:
        return PgQueueHarness(pgqueue, server, proxy)

    async def test_its_scheme_is_found_by_the_entry_point(
        self, harness: PgQueueHarness, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lines = (EXAMPLE / "pyproject.toml").read_text().splitlines()
        name, value = lines[lines.index('[project.entry-points."forebay.brokers"]') + 1].split(" = ")
        entry = EntryPoint(name, value.strip('"'), factory.ENTRY_POINTS)
        monkeypatch.setattr(factory, "entry_points", lambda **_: [entry])
        async with factory.open_broker(BrokerSettings(url=SecretStr(harness.url))) as broker:
            assert broker.identity.startswith("pgqueue ")
