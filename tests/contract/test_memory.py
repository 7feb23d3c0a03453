"""The broker in memory keeps the contract."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from forebay.brokers.api import Broker
from forebay.brokers.memory import MemoryBroker, MemoryServer
from forebay.testing.broker_contract import BrokerContract, BrokerHarness


class MemoryHarness(BrokerHarness):
    def __init__(self) -> None:
        self.server = MemoryServer()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Broker]:
        broker = MemoryBroker(self.server)
        try:
            yield broker
        finally:
            await broker.close()

    @asynccontextmanager
    async def open_small(self, max_bytes: int) -> AsyncIterator[Broker]:
        broker = MemoryBroker(MemoryServer(max_bytes=max_bytes))
        try:
            yield broker
        finally:
            await broker.close()


class TestMemory(BrokerContract):
    @pytest.fixture
    def harness(self) -> BrokerHarness:
        return MemoryHarness()
